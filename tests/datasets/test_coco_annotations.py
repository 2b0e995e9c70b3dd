"""Annotations of COCO files in any notation: boxes, areas, masks, flags and keypoints."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from detection_data import (
    BOX,
    H,
    W,
    read_annotations,
    rectangle,
    thing,
    truth_as_results,
)
from resim.datasets.masks import decode_masks
from resim.detection.prepare import usable
from resim.errors import UserError
from resim.scores.coco import coco_scores
from tiny_detectors import tiny_recipe

NAN = float("nan")
CROWD = {"size": [H, W], "counts": [10 * H + 20, 40, H * W - 10 * H - 60]}  # 40 px of column 10


@pytest.mark.parametrize("area", [0, NAN, None, "", -5, "much", [], True, 0.0, math.inf])
def test_an_unusable_area_is_computed_from_the_mask(tmp_path: Path, area: Any) -> None:
    triangle = [10, 20, 30, 20, 10, 60]  # half of the box: 400 px
    data = read_annotations(tmp_path, thing(1, 1, 3, BOX, area=area, segmentation=[triangle]))
    assert data.records[0].areas.tolist() == pytest.approx([400], abs=20)  # of its pixels, which its edges cut
    assert data.records[0].areas.tolist() == decode_masks(data.records[0]).sum(axis=(1, 2)).tolist()
    assert sum(data.repairs.counts.values()) == 1
    assert "computed from the mask" in data.repairs.lines()[0]


def test_an_unusable_area_without_a_mask_is_that_of_the_box(tmp_path: Path) -> None:
    data = read_annotations(tmp_path, thing(1, 1, 3, BOX, area=0, segmentation=[]), thing(2, 1, 3, BOX, area="800"))
    assert data.records[0].areas.tolist() == [800, 800]
    assert data.repairs.counts == {"area": 1}


def test_scores_by_size_and_of_keypoints_do_not_depend_on_the_area_in_the_file(tmp_path: Path) -> None:
    names = [f"k{number}" for number in range(17)]
    points = [value for number in range(17) for value in (12 + number, 25 + number, 2)]

    def scores(area: Any) -> dict[str, dict[str, float]]:
        person = thing(1, 1, 1, BOX, area=area, keypoints=points, num_keypoints=17)
        if area == "none":
            del person["area"], person["num_keypoints"], person["iscrowd"]
        category = {"id": 1, "name": "person", "keypoints": names}
        data = read_annotations(tmp_path / str(area), person, categories=[category])
        results = truth_as_results(data)
        results[0]["keypoints"] = [value + (place % 3 < 2) for place, value in enumerate(results[0]["keypoints"])]
        return {kind: score.values for kind, score in coco_scores(data, results, ("bbox", "segm", "keypoints")).items()}

    right = scores(800)
    assert right["keypoints"]["AP50"] == 1
    assert right["bbox"]["APs"] == 1  # 800 < 32 * 32
    for area in (0, NAN, "none", "", "800"):
        assert str(scores(area)) == str(right)  # as text, for NaN


@pytest.mark.parametrize("box", [None, [], "", [1, 2, 3], [NAN, 1, 2, 3], [0, 0, 0, 0], "left", {}, [10, 20, 0, 40]])
def test_an_unusable_box_is_computed_from_the_mask(tmp_path: Path, box: Any) -> None:
    data = read_annotations(tmp_path, thing(1, 1, 3, BOX, bbox=box))
    assert data.records[0].boxes.tolist() == [[10, 20, 30, 60]]
    assert len(data.repairs.counts) == 1


@pytest.mark.parametrize("box", ["[10, 20, 20, 40]", "10 20 20 40", ["10", "20", "20", "40"], [[10, 20, 20, 40]]])
def test_a_box_in_another_notation_is_read(tmp_path: Path, box: Any) -> None:
    data = read_annotations(tmp_path, thing(1, 1, 3, BOX, bbox=box, segmentation=[]))
    assert data.records[0].boxes.tolist() == [[10, 20, 30, 60]]
    assert data.repairs.counts in ({}, {"box-form": 1})


@pytest.mark.parametrize("box", [[30, 60, -20, -40], [30, 20, -20, 40], [10, 60, 20, -40]])
def test_corners_in_reverse_order_are_reordered(tmp_path: Path, box: list[float]) -> None:
    data = read_annotations(tmp_path, thing(1, 1, 3, BOX, bbox=box))
    assert data.records[0].boxes.tolist() == [[10, 20, 30, 60]]
    assert data.repairs.counts == {"corners-reversed": 1}


@pytest.mark.parametrize(
    ("crowd", "expected"), [("0", False), ("1", True), (None, False), ("false", False), (True, True), ("", False)]
)
def test_iscrowd_in_any_notation_affects_training_and_scores(tmp_path: Path, crowd: Any, expected: bool) -> None:
    data = read_annotations(tmp_path, thing(1, 1, 3, BOX, iscrowd=crowd), thing(2, 2, 3, BOX))
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
    data = read_annotations(tmp_path, thing(1, 1, 3, BOX, segmentation=segmentation))
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
    data = read_annotations(tmp_path, thing(1, 1, 3, (10, 20, 11, 60), segmentation=CROWD | change))
    mask = decode_masks(data.records[0])[0]
    assert mask.sum() == mask[20:60, 10].sum() == 40
    assert data.repairs.counts == {}


@pytest.mark.parametrize(("points", "kept"), [([1, 2, 2, 3], None), ([5, 6, 7, 8], [5, 6, 2, 7, 8, 2]), ([], None)])
def test_keypoints_of_another_length_keep_their_box(tmp_path: Path, points: list[int], kept: list[int] | None) -> None:
    category = {"id": 3, "name": "fox", "keypoints": ["nose", "tail"]}
    if kept is None:
        points = points[:3]
    data = read_annotations(tmp_path, thing(1, 1, 3, BOX, keypoints=points), categories=[category])
    assert data.records[0].boxes.tolist() == [[10, 20, 30, 60]]
    assert data.records[0].keypoints is not None
    assert data.records[0].keypoints.ravel().tolist() == (kept or [0] * 6)
    assert bool(data.repairs.counts) == bool(points)


def test_objects_marked_ignore_are_reported_as_objects(tmp_path: Path) -> None:
    data = read_annotations(tmp_path, thing(1, 1, 3, BOX, ignore=1), thing(2, 1, 3, BOX, ignore=1, iscrowd=1))
    assert data.records[0].crowd.tolist() == [False, True]
    assert data.repairs.counts == {"ignore": 1}


def test_boxes_in_fractions_of_the_image_are_refused(tmp_path: Path) -> None:
    shares = [thing(1, 1, 3, BOX, bbox=[0.1, 0.2, 0.3, 0.4]), thing(2, 1, 3, BOX, bbox=[0, 0, 1, 1])]
    with pytest.raises(UserError, match=r"all numbers of its 2 bboxes lie between 0 and 1.*multiply them"):
        read_annotations(tmp_path / "a", *shares)
    assert read_annotations(tmp_path / "b", *shares, thing(3, 1, 3, BOX)).num_objects == 3
    assert read_annotations(tmp_path / "c", thing(1, 1, 3, BOX, bbox=[0, 0, 1, 1])).num_objects == 1


def test_boxes_that_seem_to_be_corners_are_reported(tmp_path: Path) -> None:
    corners = [thing(1, 1, 3, BOX, bbox=[60, 50, 90, 70]), thing(2, 1, 3, BOX, bbox=[10, 20, 30, 60])]
    data = read_annotations(tmp_path / "a", *corners)
    assert data.repairs.counts == {"overhang": 1, "corners": 1}
    assert "if they are corners, rewrite them" in data.repairs.lines()[1]
    assert "corners" not in read_annotations(tmp_path / "b", *corners, thing(3, 1, 3, BOX)).repairs.counts
