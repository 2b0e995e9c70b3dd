"""Results files: ids in any notation are matched, and faulty detections are reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from detection_data import (
    BOX,
    H,
    W,
    detection,
    read_annotations,
    read_dogs,
    rectangle,
    thing,
    truth_as_results,
    write_coco,
)
from resim.datasets.coco import read_coco
from resim.errors import UserError
from resim.scores.coco import coco_scores
from resim.scores.results import check_masks, check_results, match_ids, read_results
from resim.scores.voc import voc_scores

DOG = 7  # in the COCO data sets written here


def test_results_of_another_data_set_are_refused(tmp_path: Path) -> None:
    data = read_coco(write_coco(tmp_path, [thing(1, 1, DOG, (0, 0, 10, 10))]))
    good = detection(1, DOG, (0, 0, 10, 10), 0.9)
    strange = [good, {**good, "image_id": 41}, {**good, "image_id": "b"}]
    for score in (coco_scores, voc_scores):
        with pytest.raises(
            UserError, match=r"a\.json: the image_id of 2 of 3 detections is not in .*\(41, 'b'\): name the data set"
        ):
            score(data, strange, source="a.json")
        with pytest.raises(UserError, match=r"the category_id of 1 of 2 detections is not in .* \(99\)"):
            score(data, [good, {**good, "category_id": 99}])


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        ({"score": float("nan")}, "bbox", "detection 1, of image 1, has score nan, but needs a finite"),
        ({"score": None}, "bbox", "has score None, but needs a finite"),
        ({"bbox": [1, 2, 3]}, "bbox", r"has bbox \[1, 2, 3\], but needs 4 finite numbers"),
        ({"bbox": [1, 2, 3, float("inf")]}, "bbox", r"inf\], but needs 4 finite numbers"),
        ({"bbox": [1, 2, -3, 4]}, "bbox", "has a box of negative size, width -3 and height 4"),
        ({}, "segm", "needs a segmentation in compressed RLE"),
        ({"segmentation": [rectangle(0, 0, 5, 5)]}, "segm", "needs a segmentation in compressed RLE"),
        ({"segmentation": {"size": [10, 10], "counts": "0"}}, "segm", r"a mask of size \[10, 10\], but its image is"),
    ],
)
def test_incomplete_detections_are_refused(tmp_path: Path, wrong: dict[str, Any], kind: Any, message: str) -> None:
    data = read_coco(write_coco(tmp_path, [thing(1, 1, DOG, (0, 0, 10, 10))]))
    good = truth_as_results(data)[0]
    bad = detection(1, DOG, (0, 0, 10, 10), 0.9) | wrong
    with pytest.raises(UserError, match=message):
        coco_scores(data, [good, bad], (kind,))


def test_masks_and_keypoints_are_not_scored_without_ground_truth(tmp_path: Path) -> None:
    data = read_dogs(tmp_path, ((1, 1, 10, 10), 0))
    with pytest.raises(UserError, match="has no masks, so that"):
        coco_scores(data, [], ("segm",))
    with pytest.raises(UserError, match="has no keypoints, so that"):
        coco_scores(data, [], ("keypoints",))


def test_files_that_are_not_results_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([detection(1, DOG, (0, 0, 10, 10), 0.9)]))
    assert read_results(path)[0]["bbox"] == [0, 0, 10, 10]
    for content, message in (("{}", "not COCO results"), ("[1]", "not COCO results"), ("", "not a valid JSON file")):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            read_results(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_results(tmp_path / "nowhere.json")


def test_masks_that_cannot_be_decoded_are_refused(tmp_path: Path) -> None:
    data = read_coco(write_coco(tmp_path, [thing(1, 1, DOG, (0, 0, 10, 10))]))
    good = truth_as_results(data)[0]
    check_masks([good, {**good, "segmentation": None}], "a.json")
    for counts, fault in (
        ("zzzz", "RLE whose counts are not run lengths"),
        ("11", f"RLE of 2 pixels instead of {H * W}"),
    ):
        broken = {**good, "segmentation": {"size": [H, W], "counts": counts}}
        with pytest.raises(UserError, match=rf"^a\.json: detection 1, of image 1, has an {fault}"):
            check_masks([good, broken], "a.json")


def test_ids_in_another_notation_are_matched(tmp_path: Path) -> None:
    data = read_annotations(tmp_path, thing(1, 1, 3, BOX), thing(2, 2, 7, BOX))
    results = [
        {**entry, "image_id": str(entry["image_id"]), "category_id": float(entry["category_id"])}
        for entry in truth_as_results(data)
    ]
    matched = match_ids(results, data)
    assert [(entry["image_id"], entry["category_id"]) for entry in matched] == [(1, 3), (2, 7)]
    assert all(type(entry["category_id"]) is int for entry in matched)
    assert coco_scores(data, matched)["bbox"].values["AP"] == pytest.approx(1)
    assert results[0]["image_id"] == "1"
    assert match_ids([{"image_id": "x"}], data) == [{"image_id": "x"}]


def test_results_of_skipped_images_are_refused_with_the_reason(tmp_path: Path) -> None:
    path = write_coco(tmp_path, [thing(1, 1, 3, BOX), thing(2, 2, 3, BOX)])
    results = truth_as_results(read_coco(path))
    (tmp_path / "images" / "2.png").unlink()
    with pytest.raises(
        UserError, match=r"the image_id of 1 of 2 detections is not in .*; 1 image file not found, skipped"
    ):
        check_results(read_coco(path), results, "bbox")
