"""Labels in the notations of labelling tools and tables: the right objects are read, and what is odd is reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detection_data import BOX, CROWD, H, W, picture, thing, write_coco, xml_object
from resim.datasets.coco import read_coco
from resim.datasets.records import DetectionData
from resim.datasets.voc import read_voc
from resim.datasets.voc_xml import read_flag
from resim.datasets.yolo import read_yolo
from resim.datasets.yolo_label_files import split_line
from resim.datasets.yolo_lines import unstated_keypoints
from resim.detection.left_out import copies
from resim.errors import UserError

# an image is 100 x 80 px
PERSON = {"id": 3, "name": "person", "keypoints": ["left", "right"]}


def coco(folder: Path, *annotations: dict[str, Any], **more: Any) -> DetectionData:
    return read_coco(write_coco(folder, list(annotations), **more))


def with_image_ids(folder: Path, ids: list[Any], image_ids: list[Any]) -> DetectionData:
    """Two images with these ids, and an annotation with each `image_id`, at x = 1, 2, ..."""
    things = [thing(n, 1, 3, (n, 20, 30, 60)) for n in range(1, len(image_ids) + 1)]
    path = write_coco(folder, things)
    content = json.loads(path.read_text())
    for entry, number in zip(content["images"], ids, strict=True):
        entry["id"] = number
    for entry, number in zip(content["annotations"], image_ids, strict=True):
        entry["image_id"] = number
    path.write_text(json.dumps(content))
    return read_coco(path)


def yolo(folder: Path, text: str) -> DetectionData:
    """One image `a.jpg` with these labels, of the classes cat and dog."""
    picture(folder / "images" / "a.jpg")
    (folder / "labels").mkdir()
    (folder / "labels" / "a.txt").write_text(text)
    (folder / "data.yaml").write_text("names: [cat, dog]\ntrain: images\n")
    return read_yolo(folder)


def voc(
    folder: Path, *things: str, root: str = "annotation", classes: tuple[str, ...] | None = ("cat",)
) -> DetectionData:
    picture(folder / "a.jpg")
    (folder / "a.xml").write_text(f"<{root}>{''.join(things)}</{root}>")
    return read_voc(folder, classes=classes)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


# -- ids


@pytest.mark.parametrize(("first", "second"), [("0", 0), ("0", 0.0), (0, "0"), ("0.0", 0)])
def test_id_zero_is_matched_in_any_notation(tmp_path: Path, first: Any, second: Any) -> None:
    data = with_image_ids(tmp_path, [first, 5], [second, 5])
    assert [record.boxes[:, 0].tolist() for record in data.records] == [[1], [2]]
    assert data.repairs.counts == {"image-id": 1}


def test_a_float_that_stands_for_two_ids_is_matched_to_neither(tmp_path: Path) -> None:
    # 2**53 + 1 has no float of its own: a table that turns ids into floats makes both 2**53
    data = with_image_ids(tmp_path, [2**53, 2**53 + 1], [float(2**53 + 1), 2**53 + 1])
    assert [len(record) for record in data.records] == [0, 1]
    assert data.repairs.counts == {"unknown-image": 1}


def test_a_float_that_stands_for_one_large_id_is_matched(tmp_path: Path) -> None:
    data = with_image_ids(tmp_path, [2**53 + 3, 1], [float(2**53 + 3), 1])  # the float is 2**53 + 4
    assert [len(record) for record in data.records] == [1, 1]


# -- boxes


def test_some_boxes_in_fractions_of_the_image_are_dropped_and_counted(tmp_path: Path) -> None:
    small = [thing(n, 1, 3, (0.25, 0.5, 0.5, 0.75), segmentation=[]) for n in (1, 2)]
    data = coco(tmp_path, *small, thing(3, 1, 3, (0, 0, 1, 1), segmentation=[]), thing(4, 1, 3, BOX))
    assert data.records[0].annotation_ids.tolist() == [3, 4]  # a box of one whole pixel is kept
    assert data.repairs.counts == {"fractions": 2}


def test_boxes_in_fractions_with_rounding_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"2 bboxes lie between 0 and 1\.01, like fractions"):
        coco(tmp_path, thing(1, 1, 3, (0.5, 0.5, 1.25, 1.25)), thing(2, 1, 3, (0, 0, 1.01, 1)))


def test_voc_boxes_in_fractions_are_dropped_and_counted(tmp_path: Path) -> None:
    data = voc(tmp_path, xml_object("cat", (0.1, 0.2, 0.5, 0.6)), xml_object("cat", (11, 21, 50, 60)))
    assert data.records[0].boxes.tolist() == [[10, 20, 50, 60]]
    assert data.repairs.counts == {"fractions": 1}


def test_a_flat_box_far_outside_is_not_called_one_of_zero_area(tmp_path: Path) -> None:
    # 1e30 + 20 is 1e30 in floating point
    data = coco(
        tmp_path, thing(1, 1, 3, BOX), thing(2, 1, 3, BOX, bbox=[1e30, 8, 20, 16], segmentation=None), num_images=1
    )
    assert data.repairs.counts == {"outside": 1}


def test_copies_are_counted(tmp_path: Path) -> None:
    other = thing(4, 1, 3, BOX, segmentation=[[10, 20, 30, 20, 30, 60]])  # a triangle in the same box
    data = coco(tmp_path, thing(1, 1, 3, BOX), thing(2, 1, 7, BOX), thing(3, 1, 3, BOX), other, thing(5, 2, 3, BOX))
    (line,) = copies(data)
    assert line.startswith("copies: 1 of 5 objects has the class and place of another one of their image, such as")
    assert "annotations 1 and 3 of image 1" in line
    assert copies(coco(tmp_path, thing(1, 1, 3, BOX), thing(2, 2, 3, BOX))) == []


# -- masks and keypoints


def test_the_letters_of_an_rle_as_numbers_are_read(tmp_path: Path) -> None:
    from pycocotools import mask as rle

    counts = rle.frPyObjects(CROWD, H, W)["counts"]  # type: ignore[call-overload]
    numbers = {"size": [H, W], "counts": list(counts)}  # as json.dumps(..., default=list) writes bytes
    data = coco(tmp_path, thing(1, 1, 3, BOX, segmentation=numbers, area=None))
    assert data.records[0].areas.tolist() == [40]


@pytest.mark.parametrize("key", ["v", "visibility", "visible"])
def test_keypoints_as_objects_are_read(tmp_path: Path, key: str) -> None:
    points = [{"x": 11, "y": 21, key: 2}, {"x": 12, "y": 22, key: 1}]
    data = coco(tmp_path, thing(1, 1, 3, BOX, keypoints=points), categories=[PERSON])
    keypoints = data.records[0].keypoints
    assert keypoints is not None
    assert keypoints.tolist() == [[[11, 21, 2], [12, 22, 1]]]
    assert data.repairs.counts == {"keypoint-form": 1}


def test_keypoints_as_objects_without_visibility_are_visible(tmp_path: Path) -> None:
    data = coco(tmp_path, thing(1, 1, 3, BOX, keypoints=[{"x": 11, "y": 21}, {"x": 0, "y": 0}]), categories=[PERSON])
    keypoints = data.records[0].keypoints
    assert keypoints is not None
    assert keypoints.tolist() == [[[11, 21, 2], [0, 0, 0]]]


def test_classes_that_differ_in_letter_case_are_reported(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "Cat"}, {"id": 2, "name": "cat"}]
    data = coco(tmp_path, thing(1, 1, 1, BOX), thing(2, 1, 2, BOX), categories=categories)
    assert data.classes == ("Cat", "cat")
    assert data.repairs.counts == {"similar-names": 1}


def test_a_category_by_its_name_alone_is_matched(tmp_path: Path) -> None:
    named = {**thing(1, 1, 3, BOX), "category_name": "dog"}
    del named["category_id"]
    data = coco(tmp_path, named, thing(2, 1, 3, BOX))
    assert [data.classes[label - 1] for label in data.records[0].labels] == ["dog", "cat"]
    assert data.repairs.counts == {"category-by-name": 1}


def test_a_rotation_in_the_attributes_is_reported(tmp_path: Path) -> None:
    turned_boxes = [thing(n, 1, 3, BOX, segmentation=[], attributes={"rotation": angle}) for n, angle in
                    enumerate((30.0, 0.0, 360, "n/a", None))]  # fmt: skip
    data = coco(tmp_path, *turned_boxes, thing(7, 1, 3, BOX, attributes={"rotation": 30}))
    assert data.repairs.counts == {"rotated": 1}  # the mask of the last one has its rotation


@pytest.mark.parametrize(
    ("polygon", "counts", "has_mask"),
    [
        ([0.1, 0.1, 0.5, 0.1, 0.5, 0.5], {"bad-mask": 1}, False),
        ([0, 0, 1, 0, 1, 1], {"mask-apart": 1}, True),  # one whole pixel
        ([40, 30, 60, 30, 60, 45], {"mask-apart": 1}, True),
        ([30, 30, 60, 30, 60, 45], {}, True),  # it touches the box
        ([60, 30, 15, 30, 60, 45], {}, True),
    ],
)
def test_masks_apart_from_their_boxes_are_reported(
    tmp_path: Path, polygon: list[float], counts: dict[str, int], has_mask: bool
) -> None:
    data = coco(tmp_path, thing(1, 1, 3, BOX, segmentation=[polygon]), thing(2, 1, 3, BOX))
    assert data.repairs.counts == counts
    assert data.records[0].has_mask.tolist() == [has_mask, True]
    assert data.records[0].boxes.tolist() == [list(BOX), list(BOX)]


@pytest.mark.parametrize(
    ("points", "count"),
    [
        ([11, 21, 2, 500, 21, 2], 0),
        ([0.1, 0.2, 2, 0.3, 0.4, 2], 1),
        ([0.1, 0.2, 0, 0.3, 0.4, 0], 0),  # none is labelled
        ([35, 70, 2, 0, 0, 0], 0),  # a quarter of the box (10, 20, 30, 60) away from it
        ([36, 70, 2, 0, 0, 0], 1),
    ],
)
def test_keypoints_apart_from_their_box_are_reported(tmp_path: Path, points: list[float], count: int) -> None:
    data = coco(tmp_path, thing(1, 1, 3, BOX, keypoints=points), categories=[PERSON])
    assert data.repairs.counts.get("keypoints-apart", 0) == count


# -- orientation


@pytest.mark.parametrize(("orientation", "size", "count"), [
    (3, (W, H), 1),  # turned by half: the size does not change
    (6, (H, W), 0),  # turned by a quarter: the size of the annotation is that of the upright image
    (6, (None, None), 1),
    (1, (None, None), 0),
    (9, (W, H), 0),  # no orientation, and ignored
])  # fmt: skip
def test_a_turned_image_whose_size_shows_nothing_is_reported(
    tmp_path: Path, orientation: int, size: tuple[Any, Any], count: int
) -> None:
    path = write_coco(tmp_path, [thing(1, 1, 3, (10, 20, 30, 60))], num_images=1)
    Image.new("RGB", (W, H)).save(tmp_path / "images" / "1.png", exif=turned(orientation))
    content = json.loads(path.read_text())
    content["images"][0] |= {"width": size[0], "height": size[1]}
    path.write_text(json.dumps(content))
    data = read_coco(path)
    assert data.records[0].boxes.tolist() == [[10, 20, 30, 60]]
    assert data.repairs.counts.get("orientation", 0) == count


# -- YOLO


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 0,5 0,25 0,5 0,1", "0 0.5 0.25 0.5 0.1"),
        ("0;0,5;0,25;0,5;0,1", "0 0.5 0.25 0.5 0.1"),
        ("0 1,0 0,5 1 1,0", "0 1.0 0.5 1 1.0"),
        ("0,0.5,0.25,0.5,0.1", "0 0.5 0.25 0.5 0.1"),
        ("0, 0.5, 0.25, 0.5, 0.1", "0 0.5 0.25 0.5 0.1"),
        ("0;0.5;0.25;0.5;0.1", "0 0.5 0.25 0.5 0.1"),
        ("0\t0.5\t0.25\t0.5\t0.1", "0 0.5 0.25 0.5 0.1"),
        ("0 0.1,0.2 0.3,0.4 0.5,0.6", "0 0.1 0.2 0.3 0.4 0.5 0.6"),
    ],
)
def test_commas_separate_or_are_decimal(line: str, words: str) -> None:
    assert split_line(line)[0] == words.split()


def test_yolo_boxes_with_decimal_commas_are_read(tmp_path: Path) -> None:
    data = yolo(tmp_path, "1 0,5 0,5 0,5 0,25\n0 0,1 0,1 0,1 0,1\n;\n")
    # (50, 40) of 50 x 20 px; (10, 8) of 10 x 8 px
    assert data.records[0].boxes.round(9).tolist() == [[25, 30, 75, 50], [5, 4, 15, 12]]
    assert data.records[0].labels.tolist() == [2, 1]
    assert data.repairs.counts == {"decimal-comma": 2, "not-finite": 1}


def test_poses_without_a_kpt_shape_are_no_polygons(tmp_path: Path) -> None:
    data = yolo(tmp_path, "0 0.5 0.5 0.5 0.25 0.4 0.5 2 0.6 0.5 1\n0 0.5 0.5 0.5 0.25 0.4 0.5 2 0 0 0\n")
    assert data.records[0].boxes.tolist() == [[25, 30, 75, 50]] * 2
    assert not data.has_masks
    assert data.repairs.counts == {"keypoints-unstated": 2}


BOX_AND_POINTS = [0.5, 0.5, 0.5, 0.25, 0.4, 0.5, 0.6, 0.5]
SQUARE = [0.2, 0.2, 0.8, 0.2, 0.8, 0.8, 0.2, 0.8]


@pytest.mark.parametrize(
    ("lines", "shape"),
    [
        ([BOX_AND_POINTS] * 3, (2, 2)),
        ([BOX_AND_POINTS] * 2, None),  # too few to be certain
        ([BOX_AND_POINTS] * 3 + [SQUARE], None),
        ([BOX_AND_POINTS] * 3 + [SQUARE[:6]], None),
        ([[0.0, 0, 1, 0, 1, 1, 0, 1, 0, 0]] * 3, None),  # a polygon around the whole image
        ([[0.5, 0.5, 0.5, 0.25]] * 3, None),
        ([], None),
    ],
)
def test_lines_of_boxes_and_keypoints_are_recognised(lines: list[list[float]], shape: tuple[int, int] | None) -> None:
    assert unstated_keypoints(lines) == shape


def test_folders_of_yolo_in_another_letter_case_are_found(tmp_path: Path) -> None:
    picture(tmp_path / "Images" / "train" / "A.JPG")
    (tmp_path / "Labels" / "train").mkdir(parents=True)
    (tmp_path / "Labels" / "train" / "a.TXT").write_text("0 0.5 0.5 0.5 0.25\n")
    (tmp_path / "data.yaml").write_text("names: [cat]\ntrain: Images/train\n")
    data = read_yolo(tmp_path)
    assert data.records[0].boxes.tolist() == [[25, 30, 75, 50]]
    assert data.repairs.counts == {"other-name": 1}


def test_yolo_images_of_formats_that_are_not_read_are_counted_with_their_labels(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "labels" / "b.txt").write_text("0 0.5 0.5 0.5 0.25\n\n1 0.5 0.5 0.5 0.25\n")
    for name in ("b.heic", "c.HEIC"):  # the second one without labels
        (tmp_path / "images" / name).write_bytes(b"x")
    picture(tmp_path / "images" / "a.jpg")
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.5 0.25\n")
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\ntrain: images\n")
    repairs = read_yolo(tmp_path).repairs
    assert (repairs.counts, repairs.lost) == ({"unread-format": 2}, {"unread-format": 2})
    assert "2 image files of formats that are not read, skipped with 2 annotations" in repairs.lines()[0]


def test_a_data_yaml_without_splits_names_the_classes_of_its_folder(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.jpg")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("1 0.5 0.5 0.5 0.25\n")
    (tmp_path / "data.yaml").write_text("names:\n- cat\n- dog\nnc: 2\n")  # supervision's
    data = read_yolo(tmp_path)
    assert (data.classes, data.records[0].labels.tolist()) == (("cat", "dog"), [2])
    with pytest.raises(UserError, match=f"needs names:, and train: or val:; or name {tmp_path}, to read its images"):
        read_yolo(tmp_path / "data.yaml")


def test_yolo_classes_of_one_name_are_one_class(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.jpg")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("2 0.5 0.5 0.5 0.25\n1 0.5 0.5 0.5 0.25\n0 0.5 0.5 0.5 0.25\n")
    (tmp_path / "data.yaml").write_text("names: [cat, dog, cat]\ntrain: images\n")
    data = read_yolo(tmp_path)
    assert (data.classes, data.category_ids, data.records[0].labels.tolist()) == (("cat", "dog"), (0, 1), [1, 2, 1])
    assert data.repairs.counts == {"same-name": 1}


def test_comments_in_yolo_labels_are_ignored(tmp_path: Path) -> None:
    data = yolo(tmp_path, "# class x y width height\n0 5e-1 +0.5  .5 0.25  # a cat\n")
    assert data.records[0].boxes.tolist() == [[25, 30, 75, 50]]
    assert data.repairs.counts == {}


# -- VOC


@pytest.mark.parametrize(
    ("text", "flag"), [("nan", False), ("NaN", False), ("1.0", True), ("2", True), ("maybe", None)]
)
def test_flags_of_voc_are_those_of_coco(text: str, flag: bool | None) -> None:
    assert read_flag(text) is flag


def test_voc_corners_with_decimal_commas_are_read(tmp_path: Path) -> None:
    data = voc(tmp_path, xml_object("cat", ("11,5", "21", "50", "60,25")))
    assert data.records[0].boxes.tolist() == [[10.5, 20, 50, 60.25]]
    assert data.repairs.counts == {"decimal-comma": 1}


def test_a_class_of_voc_in_another_letter_case_is_matched(tmp_path: Path) -> None:
    data = voc(tmp_path, xml_object("Cat", (11, 21, 50, 60)), xml_object("cat", (11, 21, 50, 60)))
    assert data.records[0].labels.tolist() == [1, 1]
    assert data.repairs.counts == {"category-case": 1}


def test_a_class_that_is_none_of_vocs_twenty_has_a_remedy(tmp_path: Path) -> None:
    data = voc(tmp_path, xml_object("cat", (11, 21, 50, 60)), xml_object("screw", (11, 21, 50, 60)), classes=None)
    assert "'screw': name it with --classes" in data.repairs.lines()[0]


def test_voc_boxes_that_begin_at_0_are_reported(tmp_path: Path) -> None:
    data = voc(tmp_path, xml_object("cat", (0, 21, 50, 60)), xml_object("cat", (1, 1, 50, 60)))
    assert data.records[0].boxes.tolist() == [[-1, 20, 50, 60], [0, 0, 50, 60]]
    assert data.repairs.counts == {"zero-based": 1}


def test_xml_of_another_format_is_no_image_without_objects(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not VOC's XML: its root is <annotations>, not <annotation>"):
        voc(tmp_path, '<image name="a.jpg"/>', root="annotations")
