"""What is not trained on or scored is counted, with the reason; classes are matched by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from detection_data import (
    BOX,
    CROWD,
    read_annotations,
    thing,
    truth_as_results,
    write_coco,
    write_voc,
    xml_object,
)
from resim.datasets.coco import read_coco
from resim.datasets.layouts import read_detection
from resim.datasets.voc import read_voc
from resim.detection.left_out import left_out, not_scored
from resim.detection.prepare import check_tasks, usable, with_classes_of
from resim.detection.samples import objects_to_learn
from resim.errors import UserError
from resim.scores.coco import coco_scores
from tiny_detectors import tiny, tiny_images, tiny_recipe


def test_classes_with_other_ids_are_matched_by_name_and_results_have_the_ids_of_the_file(tmp_path: Path) -> None:
    swapped = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 3, "name": "bird"}]
    data = read_annotations(tmp_path, thing(1, 1, 1, BOX), thing(2, 2, 2, BOX), categories=swapped)
    mine = with_classes_of(data, ("cat", "dog", "cow"), (1, 2, 3), "mine")
    assert mine.classes == ("cat", "dog", "cow")
    assert mine.category_ids == (2, 1, 4)  # cow's 3 is bird's here
    assert [record.labels.tolist() for record in mine.records] == [[2], [1]]
    assert mine.repairs.counts == {"unused-class": 1, "class-ids": 2}
    assert "'dog' is category 1 here, 2 in mine" in mine.repairs.lines()[1]
    assert data.repairs.counts == {}
    results = truth_as_results(mine)
    assert coco_scores(mine, results)["bbox"].per_class == {
        "dog": 1,
        "cat": 1,
        "cow": pytest.approx(float("nan"), nan_ok=True),
    }
    assert coco_scores(data, results)["bbox"].values["AP"] == pytest.approx(1)
    assert with_classes_of(mine, ("cat", "dog", "cow"), (1, 2, 3), "mine") is mine


def test_classes_in_another_letter_case_or_without_a_name_are_matched(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "Dog"}, {"id": 2, "name": ""}]
    data = read_annotations(tmp_path, thing(1, 1, 1, BOX), thing(2, 1, 2, BOX), categories=categories)
    mine = with_classes_of(data, ("cow", "dog"), (2, 3), "mine")
    assert mine.records[0].labels.tolist() == [2, 1]
    assert mine.repairs.counts == {"no-name": 1, "class-ids": 1, "class-case": 1, "class-by-id": 1}


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


def test_a_few_crowd_regions_are_reported_without_a_guess_at_the_tool(tmp_path: Path) -> None:
    many = [thing(n, 1, 3, BOX) for n in range(1, 12)]
    data = read_annotations(tmp_path, *many, thing(20, 2, 3, BOX, iscrowd=1, segmentation=CROWD))
    assert left_out(data, tiny_recipe())[0] == (
        "left out: 1 of 12 objects, in 1 image: crowd regions (iscrowd 1); --crowd-as-objects takes them as objects"
    )


def test_data_without_objects_to_learn_from_are_refused_with_all_reasons(tmp_path: Path) -> None:
    crowd = [thing(n, n, 3, BOX, iscrowd=1, segmentation=CROWD) for n in (1, 2)]
    data = read_annotations(tmp_path, *crowd, thing(3, 2, 99, BOX))
    with pytest.raises(UserError) as raised:
        usable(data, tiny_recipe())
    assert "none of its 2 images has an object to learn from; left out: 2 of 2 objects" in str(raised.value)
    assert "1 annotation of an unknown category, dropped" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_empty_split_is_refused_with_all_reasons(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [thing(1, 1, 99, BOX), thing(2, 77, 3, BOX), thing(3, 1, 98, BOX)])
    with pytest.raises(UserError) as raised:
        read_coco(path)
    assert "no annotated object in its 2 images; 2 annotations of unknown categories" in str(raised.value)
    assert "1 annotation of an image that is not listed" in str(raised.value)


def test_data_whose_masks_are_all_faulty_have_none(tmp_path: Path) -> None:
    data = read_annotations(tmp_path, thing(1, 1, 3, BOX, segmentation=[[1, 1, 5, 5]]))
    with pytest.raises(UserError, match=r"has no masks: leave --masks out; 1 polygon with fewer than three points"):
        check_tasks(tiny(masks=True), data)


def test_every_object_is_learnt_from_or_left_out_for_a_reason(tmp_path: Path) -> None:
    annotations = [
        thing(1, 1, 3, BOX), thing(2, 1, 3, BOX, iscrowd=1), thing(3, 1, 3, BOX, segmentation=[]),
        thing(4, 2, 3, (99.995, 5, 100.9, 9)), thing(5, 2, 3, BOX, segmentation=[], iscrowd=1),
    ]  # fmt: skip
    data = read_annotations(tmp_path, *annotations, num_images=3)
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


def test_a_share_and_difficult_objects_are_reported(tmp_path: Path) -> None:
    objects = {"a": [xml_object("dog", (5, 5, 60, 60), difficult=1)], "b": [xml_object("dog", (5, 5, 60, 60))]}
    data = read_voc(write_voc(tmp_path, "2007", {"trainval": ["a", "b"]}, objects), "2007 trainval")
    assert not_scored(data) == ["not scored: 1 of 2 objects: marked difficult"]
    lines = left_out(data, tiny_recipe(images=tiny_images(difficult=False)))
    assert lines[0] == "left out: 1 of 2 objects, in 1 image: marked difficult"
    assert left_out(data, tiny_recipe(fraction=0.5))[0] == "left out: 1 of 2 images, by --fraction 0.5"


def test_objects_without_a_mask_or_keypoints_are_reported(tmp_path: Path) -> None:
    category = {"id": 3, "name": "fox", "keypoints": ["nose"]}
    points = {"keypoints": [15, 30, 2]}
    data = read_annotations(
        tmp_path,
        thing(1, 1, 3, BOX, **points),
        thing(2, 2, 3, BOX, segmentation=[], keypoints=[0, 0, 0]),
        categories=[category],
    )
    assert not_scored(data, masks=True)[0] == "not scored as masks: 1 of 2 objects: no mask"
    assert not_scored(data, keypoints=True)[0] == "not scored as keypoints: 1 object: no labelled keypoint"
    lines = left_out(data, tiny_recipe(tiny(keypoints=True)))
    assert lines == ["no labelled keypoint: 1 of 2 objects, whose boxes alone are learnt"]


def test_crowd_as_objects_applies_only_to_coco_files(tmp_path: Path) -> None:
    write_voc(tmp_path, "2007", {"trainval": ["a"]}, {"a": [xml_object("dog", (5, 5, 60, 60))]})
    with pytest.raises(UserError, match="--crowd-as-objects applies only to COCO files"):
        read_detection(tmp_path, crowd_as_objects=True)
