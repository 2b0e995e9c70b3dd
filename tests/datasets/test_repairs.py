"""Faulty data: each kind is repaired or dropped, and reported in one line with count, file, image and annotation."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detection_data import BOX, H, W, picture, read_annotations, rectangle, thing, write_coco, write_voc, xml_object
from resim.counts import counted
from resim.datasets.coco import read_coco
from resim.datasets.fault_kinds import KINDS
from resim.datasets.records import DetectionData
from resim.datasets.voc import read_voc
from resim.errors import UserError

SOUND = thing(1, 1, 3, (10, 10, 20, 20))


def box(x: Any, y: Any, width: Any, height: Any) -> dict[str, Any]:
    return {"bbox": [x, y, width, height], "segmentation": []}


# kind, what is wrong in annotation 99 of image 2, a part of the line, annotation ids of image 2 that remain
FAULTS = [
    ("overhang", box(90, 70, 30, 20), "1 box that extends beyond its image, clipped.*90, 70, 120, 90 in .*100 x", [99]),
    ("outside", box(200, 10, 30, 20), "1 box that lies entirely outside its image, dropped", []),
    ("zero-area", box(10, 10, 0, 20), "1 box of zero area, dropped.*box 10, 10, 10, 30", []),
    ("corners-reversed", box(10, 10, 20, -5), "reverse order, reordered.*box 10, 10, 30, 5", [99]),
    ("no-box", box(float("nan"), 10, 5, 5), r"neither a bbox of four numbers.*\[nan, 10, 5, 5\], not 4 finite", []),
    ("no-box", box(1, 10, float("inf"), 5), "neither a bbox of four numbers.*inf", []),
    ("no-box", {"bbox": [1, 2, 3], "segmentation": []}, "bbox has 3 numbers instead of 4", []),
    ("no-box", {"bbox": None, "segmentation": None}, r"\(no bbox\)", []),
    ("no-box", {"bbox": "at the left", "segmentation": []}, "bbox is the text 'at the left'", []),
    ("box-from-mask", {"bbox": [30, 30, 0, 10]}, "computed from the mask.*box 30, 30, 30, 40", [99]),
    ("box-from-mask", {"bbox": [1, 2, 3]}, "computed from the mask.*bbox has 3 numbers instead of 4", [99]),
    ("area", {"area": float("nan")}, "computed from.*area nan", [99]),
    ("area", {"area": 0}, "computed from.*area 0", [99]),
    ("odd-flag", {"iscrowd": "perhaps"}, "neither true nor false.*iscrowd 'perhaps'", [99]),
    ("empty-mask", {"segmentation": {"size": [H, W], "counts": [8000]}}, "1 mask without a pixel", [99]),
    ("empty-mask", {"segmentation": [rectangle(5, 5, 5, 9)]}, "without a pixel.*from 5, 5 to 5, 9 in .*100 x 80", [99]),
    ("empty-mask", {"segmentation": [rectangle(100, 5, 120, 9)]}, "without a pixel", [99]),
    ("unknown-category", {"category_id": 55}, "1 annotation of an unknown category, dropped.*category_id 55", []),
    ("short-polygon", {"segmentation": [[1, 1, 5, 5]]}, "fewer than three points.*box kept.*2 points", [99]),
    ("bad-mask", {"segmentation": [[1, 1, 5, 5, float("nan"), 7]]}, "finite x, y pairs", [99]),
    ("bad-mask", {"segmentation": [[1, 1, 5, 5, 7, 7, 8]]}, "finite x, y pairs", [99]),
    ("bad-mask", {"segmentation": {"size": [H, W], "counts": [5, 5]}}, "RLE of 10 pixels instead of 8000", [99]),
    ("bad-mask", {"segmentation": {"size": [H, W], "counts": "55"}}, "RLE of 10 pixels instead of 8000", [99]),
    ("bad-mask", {"segmentation": {"size": [W, H], "counts": [8000]}}, r"RLE of size \[100, 80\] instead of", [99]),
    ("bad-mask", {"segmentation": {"size": [H, W], "counts": "\x00 "}}, "not run lengths", [99]),
    ("bad-mask", {"segmentation": "polygon"}, "type str", [99]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "wrong", "line", "left"), FAULTS)
def test_a_faulty_annotation_is_reported(
    tmp_path: Path, kind: str, wrong: dict[str, Any], line: str, left: list[int]
) -> None:
    path = write_coco(tmp_path, [SOUND, {**thing(99, 2, 3, (30, 30, 40, 40)), **wrong}])
    data = read_coco(path)
    assert data.repairs.counts == {kind: 1}
    assert data.records[0].annotation_ids.tolist() == [1]
    assert data.records[1].annotation_ids.tolist() == left
    assert np.isfinite(data.records[1].boxes).all()
    (message,) = data.repairs.lines()
    assert message.startswith("1 ")
    assert f"{path}, image 2, annotation 99 (" in message
    assert "\n" not in message
    with pytest.raises(UserError, match=r"^1 .*\(strict\): .*image 2, annotation 99"):
        read_coco(path, strict=True)
    assert re.search(line, message)


def test_a_clipped_box_ends_at_the_image(tmp_path: Path) -> None:
    data = read_coco(write_coco(tmp_path, [thing(1, 1, 3, (-20, 70, 120, 90))]))
    assert data.records[0].boxes.tolist() == [[0, 70, 100, 80]]


def test_a_box_may_extend_beyond_its_image_by_a_rounding(tmp_path: Path) -> None:
    data = read_coco(write_coco(tmp_path, [thing(1, 1, 3, (-0.4, 70, 100.6, 80.9))]))
    assert data.repairs.counts == {}
    assert data.records[0].boxes.tolist() == [[-0.4, 70, 100.6, 80.9]]


def test_a_short_polygon_is_dropped_without_the_others_of_its_object(tmp_path: Path) -> None:
    polygons = [[1, 1, 5, 5], rectangle(10, 10, 20, 20)]
    data = read_coco(write_coco(tmp_path, [thing(1, 1, 3, (1, 1, 20, 20), segmentation=polygons)]))
    assert data.records[0].masks == ([rectangle(10, 10, 20, 20)],)
    assert data.repairs.counts == {"short-polygon": 1}


@pytest.mark.parametrize(
    ("segmentation", "left"),
    [
        ({"size": 5, "counts": [W * H]}, None),
        ({"size": 7, "counts": [W * H]}, None),
        ([rectangle(10, 10, 1e9, 20)], None),  # pycocotools would ask for all of the memory
        ([[str(value) for value in rectangle(10, 10, 20, 20)]], [rectangle(10, 10, 20, 20)]),
    ],
)
def test_segmentations_that_would_stop_pycocotools(tmp_path: Path, segmentation: Any, left: Any) -> None:
    data = read_coco(write_coco(tmp_path, [thing(1, 1, 3, (1, 1, 20, 20), segmentation=segmentation), SOUND]))
    assert data.records[0].masks is not None
    assert data.records[0].masks[0] == left
    assert data.repairs.counts == ({"bad-mask": 1} if left is None else {})


def test_keypoints_that_no_category_names_are_not_read(tmp_path: Path) -> None:
    data = read_coco(write_coco(tmp_path, [thing(1, 1, 3, (1, 1, 20, 20), keypoints=[1, 2, 2], num_keypoints=1)]))
    assert data.num_objects == 1
    assert data.repairs.counts == {"unnamed-keypoints": 1}
    assert len(read_coco(data.source, strict=True)) == 2  # a note, not a fault


def test_annotations_of_images_that_are_not_listed(tmp_path: Path) -> None:
    data = read_coco(write_coco(tmp_path, [SOUND, thing(8, 77, 3, (0, 0, 5, 5))]))
    assert "image 77, annotation 8" in data.repairs.lines()[0]
    assert data.repairs.counts == {"unknown-image": 1}


def test_strict_names_the_first_kind_with_its_count_and_the_others(tmp_path: Path) -> None:
    many = [thing(number, 1, 55, (0, 0, 5, 5)) for number in range(10, 15)]
    path = write_coco(tmp_path, [SOUND, *many, thing(20, 2, 3, (0, 0, 5, 0), segmentation=[])])
    expected = (
        "^5 annotations of unknown categories .*annotation 10 .*; and 2 more; also 1 box of zero area; "
        "correct the data or leave --strict out$"
    )
    with pytest.raises(UserError, match=expected):
        read_coco(path, strict=True)
    assert [line.split()[0] for line in read_coco(path).repairs.lines()] == ["5", "1"]


# -- images


def edit(path: Path, **image: Any) -> None:
    """Change the entry of image 2."""
    content = json.loads(path.read_text())
    content["images"][1] |= image
    path.write_text(json.dumps(content))


def kept(data: DetectionData) -> list[int | str]:
    return [record.image_id for record in data.records]


def test_a_missing_image_file_is_skipped(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [SOUND, thing(2, 2, 3, (0, 0, 5, 5))])
    (tmp_path / "images" / "2.png").unlink()
    data = read_coco(path)
    assert kept(data) == [1]
    lost = "skipped with 1 annotation"
    assert data.repairs.lines() == [f'1 image file not found, {lost}: {path}, image 2 ("2.png")']
    with pytest.raises(UserError, match="1 image file not found"):
        read_coco(path, strict=True)


def test_an_unreadable_image_is_skipped(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [SOUND])
    (tmp_path / "images" / "2.png").write_bytes(b"no picture")
    data = read_coco(path)
    assert kept(data) == [1]
    assert data.repairs.counts == {"unreadable-image": 1}
    assert kept(read_coco(path, check_images=False)) == [1, 2]


def test_an_image_of_another_size_is_skipped(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [SOUND])
    picture(tmp_path / "images" / "2.png", width=W + 1)
    data = read_coco(path)
    assert kept(data) == [1]
    assert "is 101 x 80, its annotation states 100 x 80" in data.repairs.lines()[0]


def test_an_image_turned_by_its_exif_orientation_is_reported(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [SOUND])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (W, H)).save(tmp_path / "images" / "2.jpg", exif=exif)
    edit(path, file_name="2.jpg")
    expected = "is 80 x 100, its annotation states 100 x 80: the file is turned by its EXIF orientation"
    assert expected in read_coco(path).repairs.lines()[0]


@pytest.mark.parametrize("orientation", [None, 1, 3])
def test_an_image_that_exif_does_not_turn_is_not_reported_as_turned(tmp_path: Path, orientation: int | None) -> None:
    path = write_coco(tmp_path, [SOUND])
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.new("RGB", (H, W)).save(tmp_path / "images" / "2.jpg", exif=exif)
    edit(path, file_name="2.jpg")
    (line,) = read_coco(path).repairs.lines()
    assert "is 80 x 100, its annotation states 100 x 80: width and height are exchanged, and no EXIF" in line
    assert "turned by its EXIF" not in line


def test_an_image_listed_twice_is_kept_once(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [SOUND])
    edit(path, id=1, file_name="1.png")
    data = read_coco(path)
    assert kept(data) == [1]
    assert data.repairs.counts == {"listed-twice": 1}


# -- nothing left


def test_a_file_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="empty split, no usable image"):
        read_coco(write_coco(tmp_path, [], num_images=0))


def test_no_image_file_at_all_names_the_folder_and_the_archive(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [SOUND])
    (tmp_path / "images").rename(tmp_path / "images.old")
    for image in (tmp_path / "images.old").iterdir():
        image.unlink()
    path.with_suffix(".tar").touch()
    with pytest.raises(UserError, match=r"empty split, .*unpack instances_val\.tar.*2 image files not found"):
        read_coco(path)
    with pytest.raises(UserError, match=r"instances_val\.tar: not a folder of images: unpack it"):
        read_coco(path, path.with_suffix(".tar"))
    with pytest.raises(UserError, match="nowhere: not a folder of images: name the folder"):
        read_coco(path, tmp_path / "nowhere")


def test_a_file_without_objects_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="empty split, no annotated object in its 2 images"):
        read_coco(write_coco(tmp_path, []))


def test_an_empty_voc_list(tmp_path: Path) -> None:
    write_voc(tmp_path, "2007", {"trainval": []}, {})
    with pytest.raises(UserError, match=r"trainval\.txt: empty split"):
        read_voc(tmp_path)


# -- files that are not COCO


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"images": [{"id": 1, "file_name": 5}], "annotations": [], "categories": [{"id": 1}]}',
            "no usable image.*1 image entry without .* file_name.*entry 0: file_name is '5'",
        ),
        ("{", "is not a valid JSON file"),
        ('{"images": [], "categories": []}', "no categories and no annotations"),
        ('{"images": 5}', "an object whose `images` are of type int, but must be a list"),
        ('{"images": [], "annotations": 5}', "`annotations` is of type int, but must be a list of objects"),
        (
            '{"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1}]}',
            "no usable image.*entry 0: no file_name",
        ),
        (
            '{"images": [], "annotations": [3], "categories": [{"id": 1}]}',
            "1 entry that is not a JSON object.*entry 0 of annotations is 3",
        ),
        ('{"images": [], "annotations": [], "categories": [{"name": "a"}]}', "none of its categories has an id"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            "category id 1 is listed twice, as 'a' and as 'b'",
        ),
    ],
)
def test_other_files_than_coco_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(UserError, match=f"a.json: .*{message}"):
        read_coco(path)


def test_a_coco_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.json: cannot be read \(No such file"):
        read_coco(tmp_path / "a.json")


# -- VOC


@pytest.mark.parametrize(
    ("wrong", "kind", "num_left"),
    [
        (xml_object("dog", (50, 50, 150, 70)), "overhang", 2),
        (xml_object("dog", (150, 50, 160, 70)), "outside", 1),
        (xml_object("dog", (50, 50, 40, 70)), "corners-reversed", 2),
        (xml_object("dog", ("nan", 50, 40, 70)), "not-finite", 1),
        (xml_object("dog", ("", 50, 40, 70)), "not-finite", 1),
        ("<object><name>dog</name></object>", "no-box", 1),
        (xml_object("unicorn", (50, 50, 60, 70)), "unknown-category", 1),
    ],
)
def test_a_faulty_voc_object(tmp_path: Path, wrong: str, kind: str, num_left: int) -> None:
    sound = xml_object("dog", (1, 1, 9, 9))
    write_voc(tmp_path, "2007", {"trainval": ["a"]}, {"a": [sound, wrong]})
    data = read_voc(tmp_path)
    assert data.repairs.counts == {kind: 1}
    assert len(data.records[0]) == num_left
    path = tmp_path / "VOC2007" / "Annotations" / "a.xml"
    assert f"{path}, image a, annotation 2 (" in data.repairs.lines()[0]
    with pytest.raises(UserError, match=r"\(strict\)"):
        read_voc(tmp_path, strict=True)


def test_voc_files_that_are_missing_or_broken(tmp_path: Path) -> None:
    sound = [xml_object("dog", (1, 1, 9, 9))]
    ids = ["a", "b", "c", "d", "a"]
    write_voc(tmp_path, "2007", {"trainval": ids}, dict.fromkeys("abcd", sound))
    (tmp_path / "VOC2007" / "JPEGImages" / "b.jpg").unlink()
    (tmp_path / "VOC2007" / "Annotations" / "c.xml").unlink()
    (tmp_path / "VOC2007" / "Annotations" / "d.xml").write_text("<annotation>")
    data = read_voc(tmp_path)
    assert kept(data) == ["a"]
    assert data.repairs.counts == {"missing-image": 1, "missing-annotation": 2, "listed-twice": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_fault_is_reported_in_the_singular(kind: str) -> None:
    assert KINDS[kind].problem(1) == KINDS[kind].one
    assert KINDS[kind].problem(2) == KINDS[kind].many
    assert KINDS[kind].one != KINDS[kind].many
    assert counted(1, "image") + counted(2, "box", "boxes") == "1 image2 boxes"


def test_problems_are_counted_and_only_the_first_are_kept(tmp_path: Path) -> None:
    data = read_annotations(tmp_path, *[thing(n, 1, 3, BOX, area=0) for n in range(1, 101)])
    assert data.repairs.counts == {"area": 100}
    assert len(data.repairs.problems) < 100
    assert data.repairs.lines()[0].endswith("; and 97 more")
    assert np.unique(data.records[0].areas).tolist() == [800]
