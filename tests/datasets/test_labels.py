"""COCO files as tools write them: what is meant is read, what is not known is left out and said, with right values."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detection_data import H, W, rectangle, thing, truth_as_results, write_coco, write_voc, xml_object
from resim.datasets.coco import read_coco
from resim.datasets.masks import decode_masks
from resim.datasets.read import read_detection
from resim.datasets.records import DetectionData
from resim.datasets.voc import read_voc
from resim.detection.left_out import left_out, not_scored
from resim.detection.prepare import check_tasks, usable, with_classes_of
from resim.detection.samples import objects_to_learn
from resim.errors import UserError
from resim.scores.coco import coco_scores
from resim.scores.results import check_results, with_ids_of
from tiny_detectors import tiny, tiny_images, tiny_recipe

NAN = float("nan")
BOX = (10, 20, 30, 60)  # 20 x 40 px, an area of 800
CROWD = {"size": [H, W], "counts": [10 * H + 20, 40, H * W - 10 * H - 60]}  # 40 px of column 10


def read(folder: Path, *annotations: dict[str, Any], **more: Any) -> DetectionData:
    """A file of these annotations, by default of two images and the classes cat (3) and dog (7)."""
    return read_coco(write_coco(folder, list(annotations), **more))


def rewrite(path: Path, **keys: Any) -> Path:
    """The file with other lists; None takes one away."""
    content = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


# -- annotations


@pytest.mark.parametrize("area", [0, NAN, None, "", -5, "much", [], True, 0.0, math.inf])
def test_an_area_that_is_none_is_that_of_the_mask(tmp_path: Path, area: Any) -> None:
    triangle = [10, 20, 30, 20, 10, 60]  # half of the box: 400 px
    data = read(tmp_path, thing(1, 1, 3, BOX, area=area, segmentation=[triangle]))
    assert data.records[0].areas.tolist() == pytest.approx([400], abs=20)  # of its pixels, which its edges cut
    assert data.records[0].areas.tolist() == decode_masks(data.records[0]).sum(axis=(1, 2)).tolist()
    assert sum(data.repairs.counts.values()) == 1
    assert "worked out from the mask" in data.repairs.lines()[0]


def test_an_area_that_is_none_is_that_of_the_box_where_there_is_no_mask(tmp_path: Path) -> None:
    data = read(tmp_path, thing(1, 1, 3, BOX, area=0, segmentation=[]), thing(2, 1, 3, BOX, area="800"))
    assert data.records[0].areas.tolist() == [800, 800]
    assert data.repairs.counts == {"area": 1}


def test_scores_by_size_and_of_keypoints_do_not_hang_on_the_file_s_area(tmp_path: Path) -> None:
    names = [f"k{number}" for number in range(17)]
    points = [value for number in range(17) for value in (12 + number, 25 + number, 2)]

    def scores(area: Any) -> dict[str, dict[str, float]]:
        person = thing(1, 1, 1, BOX, area=area, keypoints=points, num_keypoints=17)
        if area == "none":
            del person["area"], person["num_keypoints"], person["iscrowd"]
        category = {"id": 1, "name": "person", "keypoints": names}
        data = read(tmp_path / str(area), person, categories=[category])
        results = truth_as_results(data)
        results[0]["keypoints"] = [value + (place % 3 < 2) for place, value in enumerate(results[0]["keypoints"])]
        return {kind: score.values for kind, score in coco_scores(data, results, ("bbox", "segm", "keypoints")).items()}

    right = scores(800)
    assert right["keypoints"]["AP50"] == 1
    assert right["bbox"]["APs"] == 1  # 800 < 32 * 32
    for area in (0, NAN, "none", "", "800"):
        assert str(scores(area)) == str(right)  # as text, for NaN


@pytest.mark.parametrize("box", [None, [], "", [1, 2, 3], [NAN, 1, 2, 3], [0, 0, 0, 0], "left", {}, [10, 20, 0, 40]])
def test_a_box_that_is_none_is_that_of_the_mask(tmp_path: Path, box: Any) -> None:
    data = read(tmp_path, thing(1, 1, 3, BOX, bbox=box))
    assert data.records[0].boxes.tolist() == [[10, 20, 30, 60]]
    assert len(data.repairs.counts) == 1


@pytest.mark.parametrize("box", ["[10, 20, 20, 40]", "10 20 20 40", ["10", "20", "20", "40"], [[10, 20, 20, 40]]])
def test_a_box_in_another_form(tmp_path: Path, box: Any) -> None:
    data = read(tmp_path, thing(1, 1, 3, BOX, bbox=box, segmentation=[]))
    assert data.records[0].boxes.tolist() == [[10, 20, 30, 60]]
    assert data.repairs.counts in ({}, {"box-form": 1})


@pytest.mark.parametrize("box", [[30, 60, -20, -40], [30, 20, -20, 40], [10, 60, 20, -40]])
def test_corners_in_reverse_order_are_put_in_order(tmp_path: Path, box: list[float]) -> None:
    data = read(tmp_path, thing(1, 1, 3, BOX, bbox=box))
    assert data.records[0].boxes.tolist() == [[10, 20, 30, 60]]
    assert data.repairs.counts == {"corners-reversed": 1}


@pytest.mark.parametrize(
    ("crowd", "expected"), [("0", False), ("1", True), (None, False), ("false", False), (True, True), ("", False)]
)
def test_iscrowd_in_any_dress_reaches_training_and_scores(tmp_path: Path, crowd: Any, expected: bool) -> None:
    data = read(tmp_path, thing(1, 1, 3, BOX, iscrowd=crowd), thing(2, 2, 3, BOX))
    assert [record.crowd.tolist() for record in data.records] == [[expected], [False]]
    assert len(usable(data, tiny_recipe())) == (1 if expected else 2)
    # nothing detected in image 1: recall 1 where it is a crowd, a half where it is an object (51 of 101 thresholds)
    found = [entry for entry in truth_as_results(data) if entry["image_id"] == 2]
    assert coco_scores(data, found)["bbox"].values["AP"] == pytest.approx(1 if expected else 51 / 101)


@pytest.mark.parametrize(
    "segmentation",
    [
        rectangle(10, 20, 30, 60),
        [[str(number) for number in rectangle(10, 20, 30, 60)]],
        [[10, 20], [30, 20], [30, 60], [10, 60]],
        json.dumps([rectangle(10, 20, 30, 60)]),
    ],
)
def test_a_polygon_in_another_form_is_the_same_mask(tmp_path: Path, segmentation: Any) -> None:
    data = read(tmp_path, thing(1, 1, 3, BOX, segmentation=segmentation))
    mask = decode_masks(data.records[0])[0]
    assert mask.sum() == mask[20:60, 10:30].sum() == 800
    assert data.repairs.counts in ({}, {"mask-form": 1})


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"counts": [float(count) for count in CROWD["counts"]]},
        {"counts": [str(count) for count in CROWD["counts"]]},
        {"counts": " ".join(map(str, CROWD["counts"]))},
        {"counts": str(CROWD["counts"])},
        {"size": None},
        {"size": [str(H), str(W)]},
    ],
)
def test_rle_in_another_form_is_the_same_mask(tmp_path: Path, change: dict[str, Any]) -> None:
    data = read(tmp_path, thing(1, 1, 3, (10, 20, 11, 60), segmentation=CROWD | change))
    mask = decode_masks(data.records[0])[0]
    assert mask.sum() == mask[20:60, 10].sum() == 40
    assert data.repairs.counts == {}


@pytest.mark.parametrize(("points", "kept"), [([1, 2, 2, 3], None), ([5, 6, 7, 8], [5, 6, 2, 7, 8, 2]), ([], None)])
def test_keypoints_of_another_length_leave_the_box(tmp_path: Path, points: list[int], kept: list[int] | None) -> None:
    category = {"id": 3, "name": "fox", "keypoints": ["nose", "tail"]}
    if kept is None:
        points = points[:3]
    data = read(tmp_path, thing(1, 1, 3, BOX, keypoints=points), categories=[category])
    assert data.records[0].boxes.tolist() == [[10, 20, 30, 60]]
    assert data.records[0].keypoints is not None
    assert data.records[0].keypoints.ravel().tolist() == (kept or [0] * 6)
    assert bool(data.repairs.counts) == bool(points)


def test_objects_that_ignore_marks_are_said_to_be_objects(tmp_path: Path) -> None:
    data = read(tmp_path, thing(1, 1, 3, BOX, ignore=1), thing(2, 1, 3, BOX, ignore=1, iscrowd=1))
    assert data.records[0].crowd.tolist() == [False, True]
    assert data.repairs.counts == {"ignore": 1}


# -- ids


@pytest.mark.parametrize(
    ("images", "annotations"),
    [((1, 2), ("1", "2")), ((1, 2), (1.0, "2.0")), (("1", 2.0), (1, "2")), (("01", "02"), (1, 2))],
)
def test_ids_of_images_in_any_dress(tmp_path: Path, images: tuple[Any, ...], annotations: tuple[Any, ...]) -> None:
    path = write_coco(tmp_path, [thing(n, n, 3, (n, n, 20, 20)) for n in (1, 2)])
    content = json.loads(path.read_text())
    for entry, number in zip(content["images"], images, strict=True):
        entry["id"] = number
    for entry, number in zip(content["annotations"], annotations, strict=True):
        entry["image_id"] = number
    data = read_coco(rewrite(path, **content))
    assert [record.boxes[0, 0] for record in data.records] == [1, 2]
    assert [record.image_id for record in data.records] == list(images)  # results say it as the list of images does
    assert set(data.repairs.counts) <= {"image-id"}


def test_ids_that_are_told_apart_by_their_writing_alone_are_not_mixed(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [thing(1, 1, 3, (1, 1, 20, 20)), thing(2, 2, 3, (2, 2, 20, 20))])
    content = json.loads(path.read_text())
    content["images"][0]["id"], content["images"][1]["id"] = "1", "01"
    content["annotations"][0]["image_id"], content["annotations"][1]["image_id"] = "01", 1
    data = read_coco(rewrite(path, **content))
    assert [len(record) for record in data.records] == [0, 1]
    assert "image_id 1 is no id of an image" in data.repairs.lines()[0]


def test_an_image_id_that_is_a_file_s_name(tmp_path: Path) -> None:
    data = read(tmp_path, thing(1, 1, 3, BOX), thing(2, "2.png", 3, BOX), thing(3, "nowhere.png", 3, BOX))  # type: ignore[arg-type]
    assert [len(record) for record in data.records] == [1, 1]
    assert data.repairs.counts == {"image-by-name": 1, "unknown-image": 1}


def test_two_files_under_one_id_are_left_out_with_their_annotations(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [thing(n, n, 3, (n, n, 20, 20)) for n in (1, 2, 3)], num_images=3)
    content = json.loads(path.read_text())
    content["images"][1]["id"] = content["annotations"][1]["image_id"] = 1
    data = read_coco(rewrite(path, **content))
    assert [record.image_id for record in data.records] == [3]
    (line,) = data.repairs.lines()
    assert line.startswith("1 image id that stands for several files")
    assert line.endswith(f"files skipped with 2 annotations: {path}, image 1 (1.png and 2.png)")


def test_one_file_under_two_ids_is_said(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [thing(n, n, 3, BOX) for n in (1, 2)])
    content = json.loads(path.read_text())
    content["images"][1]["file_name"] = "1.png"
    data = read_coco(rewrite(path, **content))
    assert len(data) == 2
    assert data.repairs.counts == {"file-twice": 1}
    assert "1.png, also image 1" in data.repairs.lines()[0]


@pytest.mark.parametrize(
    "size", [("100", "80"), (100.0, 80.0), (0, 0), (None, None), ("", ""), (NAN, NAN), (100, None)]
)
def test_sizes_in_any_dress(tmp_path: Path, size: tuple[Any, Any]) -> None:
    path = write_coco(tmp_path, [thing(1, 1, 3, BOX)], num_images=1)
    content = json.loads(path.read_text())
    content["images"][0] |= {"width": size[0], "height": size[1]}
    (record,) = read_coco(rewrite(path, **content)).records
    assert (record.width, record.height) == (W, H)


def test_an_image_without_a_file_name_is_named_by_lvis_s_address(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [thing(1, 1, 3, BOX)], num_images=1)
    content = json.loads(path.read_text())
    image = content["images"][0]
    del image["file_name"]
    image |= {"coco_url": "http://images.cocodataset.org/images/1.png", "neg_category_ids": [3]}
    data = read_coco(rewrite(path, **content))
    assert data.records[0].image.endswith("images/1.png")
    assert data.repairs.counts == {"file-name": 1, "lvis": 1}


# -- categories


def test_ids_of_categories_in_any_dress(tmp_path: Path) -> None:
    categories = [{"id": "7", "name": "dog"}, {"id": 3.0, "name": "cat"}]
    annotations = [thing(1, 1, 7, BOX), thing(2, 1, "3", BOX), thing(3, 1, 7.0, BOX)]  # type: ignore[arg-type]
    data = read(tmp_path, *annotations, categories=categories)
    assert (data.classes, data.category_ids) == (("cat", "dog"), (3, 7))
    assert data.records[0].labels.tolist() == [2, 1, 2]
    assert data.repairs.counts == {}


def test_ids_that_are_words_are_numbered(tmp_path: Path) -> None:
    categories = [{"id": "dog-a1", "name": "dog"}, {"id": "cat-b2", "name": "cat"}, {"id": 4, "name": "cow"}]
    annotations = [thing(1, 1, "cat-b2", BOX), thing(2, 1, "dog-a1", BOX), thing(3, 1, "cow", BOX)]  # type: ignore[arg-type]
    data = read(tmp_path, *annotations, categories=categories)
    assert (data.classes, data.category_ids) == (("cow", "dog", "cat"), (4, 5, 6))
    assert data.records[0].labels.tolist() == [3, 2, 1]
    assert data.repairs.counts == {"text-category": 2, "category-by-name": 1}


def test_roboflow_s_parent_is_no_class(tmp_path: Path) -> None:
    categories = [
        {"id": 0, "name": "animals", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "animals"},
        {"id": 2, "name": "dog", "supercategory": "animals"},
    ]
    data = read(tmp_path / "a", thing(1, 1, 2, BOX), categories=categories)
    assert (data.classes, data.category_ids) == (("cat", "dog"), (1, 2))
    assert data.records[0].labels.tolist() == [2]
    assert data.repairs.counts == {"parent-category": 1}
    used = read(tmp_path / "b", thing(1, 1, 2, BOX), thing(2, 1, 0, BOX), categories=categories)
    assert used.classes == ("animals", "cat", "dog")
    alone = [{"id": 0, "name": "dog", "supercategory": "none"}, {"id": 1, "name": "dog", "supercategory": "dog"}]
    assert read(tmp_path / "c", thing(1, 1, 1, BOX), categories=alone).classes == ("dog",)


def test_categories_with_one_name_are_one_class(tmp_path: Path) -> None:
    categories = [
        {"id": 5, "name": "dog "},
        {"id": 2, "name": "dog"},
        {"id": 3, "name": "cat"},
        {"id": 3, "name": "cat"},
    ]
    data = read(tmp_path, thing(1, 1, 5, BOX), thing(2, 1, 2, BOX), thing(3, 1, 3, BOX), categories=categories)
    assert (data.classes, data.category_ids) == (("dog", "cat"), (2, 3))
    assert data.records[0].labels.tolist() == [1, 1, 2]
    assert data.repairs.counts == {"category-twice": 1, "same-name": 1}
    perfect = truth_as_results(data)
    assert coco_scores(data, perfect)["bbox"].values["AP"] == pytest.approx(1)


@pytest.mark.parametrize("name", [None, "", "  "])
def test_a_category_without_a_name_is_called_by_its_id(tmp_path: Path, name: str | None) -> None:
    data = read(tmp_path, thing(1, 1, 3, BOX), categories=[{"id": 3, "name": name}])
    assert data.classes == ("3",)
    assert data.repairs.counts == {"no-name": 1}


@pytest.mark.parametrize("categories", [None, []])
def test_a_missing_list_of_categories_is_made_from_the_annotations(tmp_path: Path, categories: Any) -> None:
    annotations = [thing(1, 1, 7, BOX), thing(2, 1, "3", BOX, category_name="cat"), thing(3, 2, 7, BOX)]  # type: ignore[arg-type]
    data = read_coco(rewrite(write_coco(tmp_path, annotations), categories=categories))
    assert (data.classes, data.category_ids) == (("cat", "7"), (3, 7))
    assert [record.labels.tolist() for record in data.records] == [[2, 1], [2]]
    assert data.repairs.counts == {"no-categories": 1}


def test_without_any_category_there_is_one(tmp_path: Path) -> None:
    annotation = thing(1, 1, 7, BOX)
    del annotation["category_id"]
    data = read_coco(rewrite(write_coco(tmp_path, [annotation]), categories=None))
    assert (data.classes, data.category_ids) == (("object",), (1,))
    assert data.records[0].labels.tolist() == [1]
    assert data.repairs.counts == {"no-categories": 1, "only-category": 1}


def test_classes_with_other_keypoints_still_have_boxes(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "a", "keypoints": ["x"]}, {"id": 2, "name": "b", "keypoints": ["y", "z"]}]
    data = read(tmp_path, thing(1, 1, 1, BOX, keypoints=[1, 2, 2]), categories=categories)
    assert data.num_objects == 1
    assert not data.has_keypoints
    with pytest.raises(
        UserError, match=r"has no keypoints: leave --keypoints out; .*1 keypoints of 'a' and 2 others of"
    ):
        check_tasks(tiny(keypoints=True), data)


# -- classes of a detector


def test_classes_under_other_ids_are_matched_by_name_and_results_have_the_file_s_ids(tmp_path: Path) -> None:
    swapped = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 3, "name": "bird"}]
    data = read(tmp_path, thing(1, 1, 1, BOX), thing(2, 2, 2, BOX), categories=swapped)
    mine = with_classes_of(data, ("cat", "dog", "cow"), (1, 2, 3), "mine")
    assert mine.classes == ("cat", "dog", "cow")
    assert mine.category_ids == (2, 1, 4)  # cow's 3 is bird's here
    assert [record.labels.tolist() for record in mine.records] == [[2], [1]]
    assert mine.repairs.counts == {"unused-class": 1, "class-ids": 2}
    assert "'dog' is category 1 here, 2 in mine" in mine.repairs.lines()[1]
    assert data.repairs.counts == {}
    results = truth_as_results(mine)
    assert coco_scores(mine, results)["bbox"].per_class == {"dog": 1, "cat": 1, "cow": pytest.approx(NAN, nan_ok=True)}
    assert coco_scores(data, results)["bbox"].values["AP"] == pytest.approx(1)
    assert with_classes_of(mine, ("cat", "dog", "cow"), (1, 2, 3), "mine") is mine


def test_classes_in_other_letters_and_without_a_name(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "Dog"}, {"id": 2, "name": ""}]
    data = read(tmp_path, thing(1, 1, 1, BOX), thing(2, 1, 2, BOX), categories=categories)
    mine = with_classes_of(data, ("cow", "dog"), (2, 3), "mine")
    assert mine.records[0].labels.tolist() == [2, 1]
    assert mine.repairs.counts == {"no-name": 1, "class-ids": 1, "class-case": 1, "class-by-id": 1}


# -- crowd regions, and what else a rule leaves out


def test_crowd_regions_are_counted_and_can_be_objects(tmp_path: Path) -> None:
    path = write_coco(
        tmp_path, [thing(n, n, 3, BOX, iscrowd=int(n < 3), segmentation=CROWD) for n in (1, 2, 3)], num_images=3
    )
    data = read_coco(path)
    lines = left_out(data, tiny_recipe())
    assert lines[0].startswith("left out: 2 of 3 objects, in 2 images: crowd regions (iscrowd 1); --crowd-as-objects")
    assert "CVAT" in lines[0]
    assert lines[1].startswith("left out: 2 of 3 images: all of their objects are left out")
    assert not_scored(data)[0].startswith("not scored: 2 of 3 objects: crowd regions (iscrowd 1)")
    taken = read_detection(path, crowd_as_objects=True)
    assert taken.repairs.counts == {"crowd-as-objects": 2}
    assert len(usable(taken, tiny_recipe(tiny(masks=True)))) == 3
    assert left_out(taken, tiny_recipe()) == not_scored(taken) == []
    assert len(read_detection(path, crowd_as_objects=True, strict=True)) == 3


def test_a_few_crowd_regions_are_said_without_a_guess_at_the_tool(tmp_path: Path) -> None:
    many = [thing(n, 1, 3, BOX) for n in range(1, 12)]
    data = read(tmp_path, *many, thing(20, 2, 3, BOX, iscrowd=1, segmentation=CROWD))
    assert left_out(data, tiny_recipe())[0] == (
        "left out: 1 of 12 objects, in 1 image: crowd regions (iscrowd 1); --crowd-as-objects takes them as objects"
    )


def test_nothing_to_learn_from_says_all_reasons(tmp_path: Path) -> None:
    crowd = [thing(n, n, 3, BOX, iscrowd=1, segmentation=CROWD) for n in (1, 2)]
    data = read(tmp_path, *crowd, thing(3, 2, 99, BOX))
    with pytest.raises(UserError) as raised:
        usable(data, tiny_recipe())
    assert "none of its 2 images has an object to learn from; left out: 2 of 2 objects" in str(raised.value)
    assert "1 annotation of an unknown category, dropped" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_empty_split_says_all_reasons(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [thing(1, 1, 99, BOX), thing(2, 77, 3, BOX), thing(3, 1, 98, BOX)])
    with pytest.raises(UserError) as raised:
        read_coco(path)
    assert "no annotated object in its 2 images; 2 annotations of unknown categories" in str(raised.value)
    assert "1 annotation of an image that is not listed" in str(raised.value)


def test_masks_that_are_all_faulty_are_the_reason_for_none(tmp_path: Path) -> None:
    data = read(tmp_path, thing(1, 1, 3, BOX, segmentation=[[1, 1, 5, 5]]))
    with pytest.raises(UserError, match=r"has no masks: leave --masks out; 1 polygon with fewer than three points"):
        check_tasks(tiny(masks=True), data)


def test_every_object_is_learnt_from_or_left_out_for_a_reason(tmp_path: Path) -> None:
    annotations = [
        thing(1, 1, 3, BOX), thing(2, 1, 3, BOX, iscrowd=1), thing(3, 1, 3, BOX, segmentation=[]),
        thing(4, 2, 3, (99.995, 5, 100.9, 9)), thing(5, 2, 3, BOX, segmentation=[], iscrowd=1),
    ]  # fmt: skip
    data = read(tmp_path, *annotations, num_images=3)
    for masks, expected in ((False, 2), (True, 1)):
        recipe = tiny_recipe(tiny(masks=masks))
        counts = [int(line.split()[2]) for line in left_out(data, recipe) if " objects, in " in line]
        learnt = sum(int(objects_to_learn(r, difficult=True, masks=masks).sum()) for r in data.records)
        assert learnt == expected
        assert learnt + sum(counts) == data.num_objects == 5
    assert "left out: 1 of 3 images: no object in them (--empty learns from them as background)" in left_out(
        data, recipe
    )
    assert any(
        "background (--empty): 1 of 3 images" in line
        for line in left_out(data, tiny_recipe(images=tiny_images(empty=True)))
    )


def test_a_share_and_difficult_objects_are_said(tmp_path: Path) -> None:
    objects = {"a": [xml_object("dog", (5, 5, 60, 60), difficult=1)], "b": [xml_object("dog", (5, 5, 60, 60))]}
    data = read_voc(write_voc(tmp_path, "2007", {"trainval": ["a", "b"]}, objects), "2007 trainval")
    assert not_scored(data) == ["not scored: 1 of 2 objects: marked difficult"]
    lines = left_out(data, tiny_recipe(images=tiny_images(difficult=False)))
    assert lines[0] == "left out: 1 of 2 objects, in 1 image: marked difficult"
    assert left_out(data, tiny_recipe(fraction=0.5))[0] == "left out: 1 of 2 images, by --fraction 0.5"


def test_objects_without_a_mask_or_keypoints_are_listed_as_not_scored(tmp_path: Path) -> None:
    category = {"id": 3, "name": "fox", "keypoints": ["nose"]}
    points = {"keypoints": [15, 30, 2]}
    data = read(
        tmp_path,
        thing(1, 1, 3, BOX, **points),
        thing(2, 2, 3, BOX, segmentation=[], keypoints=[0, 0, 0]),
        categories=[category],
    )
    assert not_scored(data, masks=True)[0] == "not scored as masks: 1 of 2 objects: no mask"
    assert not_scored(data, keypoints=True)[0] == "not scored as keypoints: 1 object: no labelled keypoint"
    lines = left_out(data, tiny_recipe(tiny(keypoints=True)))
    assert lines == ["no labelled keypoint: 1 of 2 objects, whose boxes alone are learnt"]


def test_crowd_as_objects_is_of_coco_files(tmp_path: Path) -> None:
    write_voc(tmp_path, "2007", {"trainval": ["a"]}, {"a": [xml_object("dog", (5, 5, 60, 60))]})
    with pytest.raises(UserError, match="--crowd-as-objects goes with COCO files only"):
        read_detection(tmp_path, crowd_as_objects=True)


# -- whole files


def test_boxes_that_are_shares_of_the_image_are_refused(tmp_path: Path) -> None:
    shares = [thing(1, 1, 3, BOX, bbox=[0.1, 0.2, 0.3, 0.4]), thing(2, 1, 3, BOX, bbox=[0, 0, 1, 1])]
    with pytest.raises(UserError, match=r"all numbers of its 2 bboxes lie from 0 to 1.*multiply them"):
        read(tmp_path / "a", *shares)
    assert read(tmp_path / "b", *shares, thing(3, 1, 3, BOX)).num_objects == 3
    assert read(tmp_path / "c", thing(1, 1, 3, BOX, bbox=[0, 0, 1, 1])).num_objects == 1


def test_boxes_that_look_like_corners_are_said(tmp_path: Path) -> None:
    corners = [thing(1, 1, 3, BOX, bbox=[60, 50, 90, 70]), thing(2, 1, 3, BOX, bbox=[10, 20, 30, 60])]
    data = read(tmp_path / "a", *corners)
    assert data.repairs.counts == {"overhang": 1, "corners": 1}
    assert "were they written as corners?" in data.repairs.lines()[1]
    assert "corners" not in read(tmp_path / "b", *corners, thing(3, 1, 3, BOX)).repairs.counts


@pytest.mark.parametrize("annotations", [None, []])
def test_a_file_of_test_images_says_what_it_lacks(tmp_path: Path, annotations: Any) -> None:
    path = rewrite(write_coco(tmp_path, []), annotations=annotations)
    with pytest.raises(
        UserError, match=r"no annotated object in its 2 images: it lists no annotations, like image_info"
    ):
        read_coco(path)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}], "COCO results"),
        ([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "id": 5}], "the list of annotations alone"),
        ([{"id": 1, "file_name": "a.jpg"}], "the list of images alone"),
        ([{"image": "a.jpg", "annotations": [{"label": "a", "coordinates": {}}]}], "CreateML"),
        ([{"data": {"image": "a.jpg"}, "annotations": []}], "Label Studio"),
        ([{"filename": "a.jpg", "regions": []}], "VIA"),
        ([{"name": "a.jpg", "labels": []}], "BDD100K"),
        ([], "an empty list"),
        ([[1, 2]], "a list whose first entry is of type list"),
        (5, "a single int"),
        ({"shapes": [], "imagePath": "a.jpg"}, "one image of LabelMe"),
        ({"_via_img_metadata": {}}, "VIA"),
        ({"a.jpg123": {"filename": "a.jpg", "regions": []}}, "VIA"),
        ({"items": [], "categories": {}}, "Datumaro"),
        ({"objects": [], "size": {}}, "Supervisely"),
        ({"type": "FeatureCollection"}, "GeoJSON"),
        ({"videos": [], "annotations": []}, "video"),
        ({"image": {}, "annotations": []}, "SA-1B"),
        ({"images": [], "annotations": [{"segments_info": []}]}, "panoptic"),
        ({"images": [], "annotations": [{"caption": "a dog"}]}, "captions"),
        ({"foo": 1}, r"an object without a list of images \(at its top: foo\)"),
    ],
)  # fmt: skip
def test_other_files_are_named(tmp_path: Path, content: Any, name: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"a\.json: not a COCO file but .*{name}") as raised:
        read_coco(path)
    assert "\n" not in str(raised.value)


def test_a_file_with_extra_keys_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = write_coco(
        tmp_path, [thing(1, 1, 3, BOX, attributes={"occluded": False}, score=None)], licenses=[], info=None
    )
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_coco(path).repairs.counts == {}


def test_a_file_as_via_writes_it(tmp_path: Path) -> None:
    """Ids as text, no sizes, one flat polygon, areas as they are, iscrowd 0."""
    annotation = thing(1, "1", "1", BOX, segmentation=rectangle(10, 20, 30, 60), area=800)  # type: ignore[arg-type]
    path = write_coco(
        tmp_path, [annotation], num_images=1, categories=[{"id": 1, "name": "cat", "supercategory": "type"}]
    )
    content = json.loads(path.read_text())
    content["images"][0] |= {"width": 0, "height": 0}
    data = read_coco(rewrite(path, **content))
    record = data.records[0]
    assert (record.boxes.tolist(), record.labels.tolist(), record.areas.tolist()) == ([[10, 20, 30, 60]], [1], [800])
    assert decode_masks(record).sum() == 800
    assert data.repairs.counts == {"image-id": 1, "mask-form": 1}


# -- results


def test_results_with_ids_in_another_dress(tmp_path: Path) -> None:
    data = read(tmp_path, thing(1, 1, 3, BOX), thing(2, 2, 7, BOX))
    results = [
        {**entry, "image_id": str(entry["image_id"]), "category_id": float(entry["category_id"])}
        for entry in truth_as_results(data)
    ]
    found = with_ids_of(results, data)
    assert [(entry["image_id"], entry["category_id"]) for entry in found] == [(1, 3), (2, 7)]
    assert all(type(entry["category_id"]) is int for entry in found)
    assert coco_scores(data, found)["bbox"].values["AP"] == pytest.approx(1)
    assert results[0]["image_id"] == "1"
    assert with_ids_of([{"image_id": "x"}], data) == [{"image_id": "x"}]


def test_results_of_images_that_were_left_out_say_why(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [thing(1, 1, 3, BOX), thing(2, 2, 3, BOX)])
    results = truth_as_results(read_coco(path))
    (tmp_path / "images" / "2.png").unlink()
    with pytest.raises(UserError, match=r"1 of 2 detections have a image_id .*; 1 image file not found, image skipped"):
        check_results(read_coco(path), results, "bbox")


def test_problems_are_counted_and_only_the_first_are_kept(tmp_path: Path) -> None:
    data = read(tmp_path, *[thing(n, 1, 3, BOX, area=0) for n in range(1, 101)])
    assert data.repairs.counts == {"area": 100}
    assert len(data.repairs.problems) < 100
    assert data.repairs.lines()[0].endswith("; and 97 more")
    assert np.unique(data.records[0].areas).tolist() == [800]


@pytest.mark.parametrize(
    ("box", "read"),
    [((90, 10, 99, 30), True), ((10, 60, 30, 90), False), ((10, 10, 30, 30), False)],
)
def test_exchanged_width_and_height(tmp_path: Path, box: tuple[float, ...], read: bool) -> None:
    """Images of 100 x 80 px, annotated as 80 x 100: a box at x = 99 fits the file alone, one at y = 90 the other."""
    path = write_coco(tmp_path, [thing(1, 1, 3, box), thing(2, 2, 3, (0, 0, 9, 9))])
    content = json.loads(path.read_text())
    rewrite(path, images=[image | {"width": H, "height": W} for image in content["images"]])
    if not read:
        with pytest.raises(UserError, match=r"2 image files of another size .*exchanged there, for no EXIF"):
            read_coco(path)
        return
    data = read_coco(path)
    assert [(record.width, record.height) for record in data.records] == [(W, H)] * 2
    assert data.records[0].boxes.tolist() == [[90, 10, 99, 30]]
    assert data.repairs.counts == {"size-exchanged": 2}
