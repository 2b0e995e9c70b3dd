"""Detections on their images: each test looks for them in the pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detection_data import H, W, thing, truth_as_results, write_coco
from resim.datasets.coco import read_coco
from resim.datasets.masks import to_rle
from resim.datasets.records import DetectionData
from resim.detection.pictures import MASK_SHARE, SMALLEST_WIDTH, detection_sheet, draw_results, draw_truth
from resim.detection.samples import read_pixels
from resim.draw.primitives import PALETTE, contrast
from resim.draw.sheet import GAP, MARGIN, PANEL_PX
from tiny_detectors import write_people

GREY = np.full((H, W, 3), 128, dtype=np.uint8)
NAMES = {3: "cat", 7: "dog"}
SCALE = SMALLEST_WIDTH / W


def detection(category_id: int, box: tuple[int, int, int, int], score: float, **more: Any) -> dict[str, Any]:
    x0, y0, x1, y1 = box
    return {"image_id": 1, "category_id": category_id, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": score, **more}


def at(picture: Image.Image, x: float, y: float) -> tuple[int, ...]:
    """The pixel at a place of the image that is not yet enlarged."""
    return tuple(np.asarray(picture)[round(y * SCALE), round(x * SCALE)].tolist())


def drawn(results: list[dict[str, Any]], **more: Any) -> Image.Image:
    return draw_results(GREY, results, NAMES, **more)


def test_a_box_is_outlined_in_its_class_colour_at_its_enlarged_place() -> None:
    picture = drawn([detection(3, (10, 20, 60, 70), 0.9), detection(7, (70, 20, 95, 70), 0.9)])
    assert picture.size == (SMALLEST_WIDTH, round(H * SCALE))
    pixels = np.asarray(picture)
    for colour, (x0, y0, x1, y1) in ((PALETTE[0], (10, 20, 60, 70)), (PALETTE[1], (70, 20, 95, 70))):
        bottom, middle = round(y1 * SCALE), round((y0 + y1) / 2 * SCALE)
        assert tuple(pixels[bottom - 3, round((x0 + x1) / 2 * SCALE)]) == colour
        assert tuple(pixels[middle, round(x0 * SCALE) + 2]) == colour
        assert tuple(pixels[middle, round(x1 * SCALE) - 3]) == colour
        assert tuple(pixels[bottom - 1, round((x0 + x1) / 2 * SCALE)]) == contrast(colour)
    assert at(picture, 35, 45) == (128, 128, 128)


def test_detections_below_the_threshold_are_left_out() -> None:
    weak = [detection(3, (10, 20, 60, 70), 0.49)]
    assert np.unique(np.asarray(drawn(weak))).tolist() == [128]
    assert len(np.unique(np.asarray(drawn(weak, threshold=0.49)))) > 1


def test_the_best_is_on_top() -> None:
    both = [detection(3, (10, 20, 60, 70), 0.9), detection(7, (10, 20, 60, 70), 0.6)]
    for results in (both, both[::-1]):
        assert at(drawn(results), 35, 70 - 3 / SCALE) == PALETTE[0]


def test_a_mask_tints_the_pixels_that_it_covers() -> None:
    code: Any = to_rle([[20, 20, 50, 20, 50, 60, 20, 60]], H, W)
    picture = drawn([detection(7, (15, 10, 60, 70), 0.9, segmentation=code)])
    expected = [round((1 - MASK_SHARE) * 128 + MASK_SHARE * value) for value in PALETTE[1]]
    assert at(picture, 35, 40) == tuple(expected)
    assert at(picture, 55, 40) == (128, 128, 128)


def test_keypoints_that_were_seen_are_dots() -> None:
    points = [30, 40, 1, 45, 50, 0]
    picture = drawn([detection(3, (10, 20, 60, 70), 0.9, keypoints=points)])
    assert at(picture, 30.5, 40.5) == PALETTE[0]  # the middle of pixel 30
    assert at(picture, 45.5, 50.5) == (128, 128, 128)


def test_the_tag_of_a_small_object_does_not_cover_it() -> None:
    picture = drawn([detection(3, (50, 40, 56, 46), 0.9)])
    assert at(picture, 53, 43) == (128, 128, 128)
    assert PALETTE[0] in {at(picture, x, 38.5) for x in np.arange(50, 58, 0.2)}


@pytest.fixture
def data(tmp_path: Path) -> DetectionData:
    crowd = {"size": [H, W], "counts": [0, H * W]}
    annotations = [
        thing(1, 1, 3, (10, 10, 90, 70), segmentation=[]),
        thing(2, 2, 7, (10, 10, 90, 70), iscrowd=1, segmentation=crowd),
    ]
    return read_coco(write_coco(tmp_path, annotations))


def test_crowd_regions_are_dashed(data: DetectionData) -> None:
    whole, dashed = (draw_truth(GREY, record, data) for record in data.records)
    gaps = []
    for picture, colour in ((whole, PALETTE[0]), (dashed, PALETTE[1])):
        row = np.asarray(picture)[round(70 * SCALE) - 3, round(12 * SCALE) : round(88 * SCALE)]
        gaps.append(int((row != colour).any(axis=1).sum()))
    assert gaps[0] == 0
    assert gaps[1] > 50


def test_truth_is_drawn_with_its_keypoints(tmp_path: Path) -> None:
    people = read_coco(write_people(tmp_path))
    record = people.records[0]
    picture = draw_truth(read_pixels(record), record, people)
    assert at(picture, 30.5, 20.5) == PALETTE[0]


def test_a_sheet_has_the_truth_and_a_column_for_each_model(data: DetectionData) -> None:
    pictures = [(record, read_pixels(record)) for record in data.records]
    columns = [(name, "after 3 steps", truth_as_results(data)) for name in ("a", "b")]
    one, two = (detection_sheet(data, pictures, columns[:count], title="t") for count in (1, 2))
    assert two.width == 2 * MARGIN + 3 * PANEL_PX + 2 * GAP
    assert one.width == 2 * MARGIN + 2 * PANEL_PX + GAP
    assert one.height <= two.height + 40
    pixels = np.asarray(two)
    left, right = (pixels[:, MARGIN + k * (PANEL_PX + GAP) :][:, :PANEL_PX] for k in (0, 1))
    rows = np.nonzero((left[:, PANEL_PX // 2] == (90, 120, 150)).all(axis=1))[0]  # the pictures' plain colour
    assert len(rows) > 100
    assert np.array_equal(pixels[rows[0], MARGIN : MARGIN + 8], right[rows[0], :8])


def test_a_sheet_leaves_out_what_is_below_the_threshold(data: DetectionData) -> None:
    pictures = [(data.records[0], read_pixels(data.records[0]))]
    results = [entry | {"score": 0.3} for entry in truth_as_results(data)]
    (shown, none) = (
        np.asarray(detection_sheet(data, pictures, [("a", "", results)], title="t", threshold=threshold))
        for threshold in (0.3, 0.5)
    )
    column = slice(MARGIN + PANEL_PX + GAP, MARGIN + 2 * PANEL_PX + GAP)
    assert (shown[:, column] == PALETTE[0]).all(axis=2).any()
    assert not (none[:, column] == PALETTE[0]).all(axis=2).any()


@pytest.mark.parametrize(
    ("size", "drawn"),
    [((1, 3000), (1, 4096)), ((70_000, 1), (65_500, 1)), ((2, 5000), (2, 5000)), ((100, 80), (480, 384))],
)
def test_a_narrow_image_is_drawn_in_a_size_that_can_be_saved(size: tuple[int, int], drawn: tuple[int, int]) -> None:
    assert draw_results(np.zeros((size[1], size[0], 3), np.uint8), [], {}).size == drawn
