"""The images of COCO files: ids and names in any notation, and sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from detection_data import (
    BOX,
    H,
    W,
    read_annotations,
    rewrite_lists,
    thing,
    write_coco,
)
from resim.datasets.coco import read_coco


@pytest.mark.parametrize(
    ("images", "annotations"),
    [((1, 2), ("1", "2")), ((1, 2), (1.0, "2.0")), (("1", 2.0), (1, "2")), (("01", "02"), (1, 2))],
)
def test_image_ids_in_any_notation_match(tmp_path: Path, images: tuple[Any, ...], annotations: tuple[Any, ...]) -> None:
    path = write_coco(tmp_path, [thing(n, n, 3, (n, n, 20, 20)) for n in (1, 2)])
    content = json.loads(path.read_text())
    for entry, number in zip(content["images"], images, strict=True):
        entry["id"] = number
    for entry, number in zip(content["annotations"], annotations, strict=True):
        entry["image_id"] = number
    data = read_coco(rewrite_lists(path, **content))
    assert [record.boxes[0, 0] for record in data.records] == [1, 2]
    assert [record.image_id for record in data.records] == list(images)  # results say it as the list of images does
    assert set(data.repairs.counts) <= {"image-id"}


def test_ids_that_differ_only_in_notation_are_not_mixed(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [thing(1, 1, 3, (1, 1, 20, 20)), thing(2, 2, 3, (2, 2, 20, 20))])
    content = json.loads(path.read_text())
    content["images"][0]["id"], content["images"][1]["id"] = "1", "01"
    content["annotations"][0]["image_id"], content["annotations"][1]["image_id"] = "01", 1
    data = read_coco(rewrite_lists(path, **content))
    assert [len(record) for record in data.records] == [0, 1]
    assert "image_id 1 is not the id of an image" in data.repairs.lines()[0]


def test_an_image_id_may_be_the_name_of_a_file(tmp_path: Path) -> None:
    data = read_annotations(tmp_path, thing(1, 1, 3, BOX), thing(2, "2.png", 3, BOX), thing(3, "nowhere.png", 3, BOX))  # type: ignore[arg-type]
    assert [len(record) for record in data.records] == [1, 1]
    assert data.repairs.counts == {"image-by-name": 1, "unknown-image": 1}


def test_files_that_share_an_id_are_skipped_with_their_annotations(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [thing(n, n, 3, (n, n, 20, 20)) for n in (1, 2, 3)], num_images=3)
    content = json.loads(path.read_text())
    content["images"][1]["id"] = content["annotations"][1]["image_id"] = 1
    data = read_coco(rewrite_lists(path, **content))
    assert [record.image_id for record in data.records] == [3]
    (line,) = data.repairs.lines()
    assert line.startswith("1 image id that several files share")
    assert line.endswith(f"all of these files skipped with 2 annotations: {path}, image 1 (1.png and 2.png)")


def test_one_file_under_two_ids_is_reported(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [thing(n, n, 3, BOX) for n in (1, 2)])
    content = json.loads(path.read_text())
    content["images"][1]["file_name"] = "1.png"
    data = read_coco(rewrite_lists(path, **content))
    assert len(data) == 2
    assert data.repairs.counts == {"file-twice": 1}
    assert "1.png, also image 1" in data.repairs.lines()[0]


@pytest.mark.parametrize(
    "size", [("100", "80"), (100.0, 80.0), (0, 0), (None, None), ("", ""), (float("nan"), float("nan")), (100, None)]
)
def test_sizes_in_any_notation_are_read(tmp_path: Path, size: tuple[Any, Any]) -> None:
    path = write_coco(tmp_path, [thing(1, 1, 3, BOX)], num_images=1)
    content = json.loads(path.read_text())
    content["images"][0] |= {"width": size[0], "height": size[1]}
    (record,) = read_coco(rewrite_lists(path, **content)).records
    assert (record.width, record.height) == (W, H)


def test_an_image_without_a_file_name_is_named_by_the_url_of_lvis(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [thing(1, 1, 3, BOX)], num_images=1)
    content = json.loads(path.read_text())
    image = content["images"][0]
    del image["file_name"]
    image |= {"coco_url": "http://images.cocodataset.org/images/1.png", "neg_category_ids": [3]}
    data = read_coco(rewrite_lists(path, **content))
    assert data.records[0].image.endswith("images/1.png")
    assert data.repairs.counts == {"file-name": 1, "lvis": 1}
