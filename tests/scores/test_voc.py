"""VOC's average precision: by hand in small cases, and equal to a copy of the devkit's loop."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detection_data import (
    detection,
    perturbed_truth,
    read_dogs,
    truth_as_results,
    write_voc,
    xml_object,
)
from resim.datasets.records import DetectionData
from resim.datasets.voc import CLASSES, read_voc
from resim.scores.voc import THRESHOLDS, ap_area, ap_eleven_points, precision_recall, voc_scores

VOC_DOG = CLASSES.index("dog") + 1


def both(values: dict[str, float]) -> tuple[float, float]:
    return values["AP50"], values["AP50_area"]


def test_curves_by_hand() -> None:
    # 4 boxes; right, wrong, right, right, wrong: one box is never matched
    right = np.array([1, 0, 1, 1, 0], dtype=bool)
    recall, precision = precision_recall(right, ~right, num_boxes=4)
    assert recall.tolist() == [0.25, 0.25, 0.5, 0.75, 0.75]
    assert precision == pytest.approx([1, 1 / 2, 2 / 3, 3 / 4, 3 / 5])
    # best precision at 0, 0.1, 0.2: 1; at 0.3 to 0.7: 3/4; at 0.8, 0.9, 1: 0
    assert ap_eleven_points(recall, precision) == pytest.approx((3 * 1 + 5 * 0.75) / 11)
    # recall from 0 to 1/4 at 1, to 1/2 and to 3/4 at 3/4
    assert ap_area(recall, precision) == pytest.approx(0.25 * 1 + 0.5 * 0.75)


def test_a_recall_of_three_tenths_reaches_its_point() -> None:
    recall, precision = np.array([0.1, 0.2, 3 / 10]), np.ones(3)
    assert ap_eleven_points(recall, precision) == pytest.approx(4 / 11)
    assert ap_area(recall, precision) == pytest.approx(0.3)


def test_curves_without_detections_are_zero() -> None:
    assert ap_eleven_points(np.zeros(0), np.zeros(0)) == ap_area(np.zeros(0), np.zeros(0)) == 0


def test_a_second_detection_of_a_box_is_wrong(tmp_path: Path) -> None:
    data = read_dogs(tmp_path, ((1, 1, 20, 20), 0), ((51, 1, 70, 20), 0))
    results = [
        detection("a", VOC_DOG, (0, 0, 20, 20), 0.9),  # right: recall 1/2, precision 1
        detection("a", VOC_DOG, (0, 0, 20, 19), 0.8),  # the same box again: 1/2, 1/2
        detection("a", VOC_DOG, (50, 0, 70, 20), 0.7),  # right: 1, 2/3
    ]
    # 11 points: 0 to 0.5 at 1, 0.6 to 1 at 2/3; area: half at 1, half at 2/3
    assert both(voc_scores(data, results).values) == pytest.approx(((6 + 5 * 2 / 3) / 11, 0.5 + 0.5 * 2 / 3))


@pytest.mark.parametrize("difficult", [0, 1])
def test_difficult_boxes_count_neither_as_right_nor_as_wrong(tmp_path: Path, difficult: int) -> None:
    data = read_dogs(tmp_path, ((1, 1, 20, 20), 0), ((51, 1, 70, 20), difficult))
    one = detection("a", VOC_DOG, (0, 0, 20, 20), 0.7)
    # the difficult box is not detected: recall 1 of one box, 1/2 of two
    assert both(voc_scores(data, [one]).values) == pytest.approx((1, 1) if difficult else (6 / 11, 0.5))
    # three detections of it come first: ignored; or right, wrong, wrong, right: recalls 1/2, 1 at 1 and 2/4
    thrice = [detection("a", VOC_DOG, (50, 0, 70, 20), score) for score in (0.99, 0.98, 0.97)]
    expected = (1, 1) if difficult else ((6 + 5 / 2) / 11, 0.75)
    assert both(voc_scores(data, [*thrice, one]).values) == pytest.approx(expected)


def test_widths_include_the_last_pixel_and_an_iou_of_one_half_matches(tmp_path: Path) -> None:
    # 10 x 10 pixels, and the upper 5 rows of them: 50 / 100. Without the last pixel it would be 9 x 4 / 81.
    data = read_dogs(tmp_path, ((1, 1, 10, 10), 0))
    assert voc_scores(data, [detection("a", VOC_DOG, (0, 0, 10, 5), 0.9)]).values["AP50"] == 1
    assert voc_scores(data, [detection("a", VOC_DOG, (0, 0, 10, 4.9), 0.9)]).values["AP50"] == 0


def test_ap_over_iou_thresholds_by_hand(tmp_path: Path) -> None:
    data = read_dogs(tmp_path, ((1, 1, 10, 10), 0), ((51, 1, 60, 10), 0))
    results = [detection("a", VOC_DOG, (0, 0, 10, 8.2), 0.9)]
    # one of two at 0.5 to 0.8, none at 0.85 to 0.95
    assert voc_scores(data, results).values == pytest.approx(
        {"AP": 0.7 * 6 / 11, "AP50": 6 / 11, "AP75": 6 / 11, "AP_area": 0.35, "AP50_area": 0.5, "AP75_area": 0.5}
    )


def test_classes_without_boxes_are_excluded_from_the_mean(tmp_path: Path) -> None:
    cat = xml_object("cat", (31, 31, 40, 40), difficult=1)
    things = {"a": [xml_object("dog", (1, 1, 10, 10)), cat]}
    data = read_voc(write_voc(tmp_path, "2007", {"trainval": ["a"]}, things))
    scores = voc_scores(data, [*truth_as_results(data), detection("a", 1, (0, 0, 5, 5), 0.9)])
    assert scores.values["AP50"] == 1
    assert scores.per_class["dog"] == 1
    assert math.isnan(scores.per_class["cat"])


def devkit_ap50(data: DetectionData, results: list[dict[str, Any]], label: int, threshold: float) -> tuple[float, ...]:
    """VOCevaldet.m, line by line, on VOC's own 1-based corners with both ends included."""
    truth: dict[Any, list[dict[str, Any]]] = {}
    num_boxes = 0
    for record in data.records:
        for index in np.flatnonzero(record.labels == label):
            x0, y0, x1, y1 = record.boxes[index]
            difficult = bool(record.difficult[index])
            truth.setdefault(record.image_id, []).append({"bb": (x0 + 1, y0 + 1, x1, y1), "diff": difficult, "det": 0})
            num_boxes += not difficult
    own = [entry for entry in results if entry["category_id"] == label]
    tp, fp = [], []
    for entry in sorted(own, key=lambda entry: -entry["score"]):
        x, y, width, height = entry["bbox"]
        bb = (x + 1, y + 1, x + width, y + height)
        most, best = -math.inf, None
        for box in truth.get(entry["image_id"], []):
            bg = box["bb"]
            iw = min(bb[2], bg[2]) - max(bb[0], bg[0]) + 1
            ih = min(bb[3], bg[3]) - max(bb[1], bg[1]) + 1
            if iw > 0 and ih > 0:
                areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (bb, bg)]
                overlap = iw * ih / (sum(areas) - iw * ih)
                if overlap > most:
                    most, best = overlap, box
        hit = 0 if best is None or most < threshold else -1 if best["diff"] else 1
        tp.append(hit == 1 and best is not None and not best["det"])
        fp.append(hit == 0 or (hit == 1 and best is not None and bool(best["det"])))
        if hit == 1 and best is not None:
            best["det"] = 1
    recall = np.cumsum(tp) / num_boxes
    with np.errstate(invalid="ignore"):
        precision = np.nan_to_num(np.cumsum(tp) / (np.cumsum(fp) + np.cumsum(tp)))
    eleven = 0.0
    for point in range(11):
        reached = precision[recall >= point / 10]
        eleven += (max(reached) if len(reached) else 0) / 11
    mrec, mpre = [0.0, *recall, 1.0], [0.0, *precision, 0.0]
    for i in range(len(mpre) - 2, -1, -1):
        mpre[i] = max(mpre[i], mpre[i + 1])
    return eleven, sum((mrec[i] - mrec[i - 1]) * mpre[i] for i in range(1, len(mrec)))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scores_equal_those_of_the_devkit(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = {}
    for number in range(12):
        low = rng.integers(1, 60, (5, 2))
        high = low + rng.integers(5, 20, (5, 2))
        images[f"{number:06d}"] = [
            xml_object(
                str(rng.choice(["dog", "cat"])),
                (*map(int, low[n]), *map(int, high[n])),
                int(number > 0 and rng.random() < 0.3),
            )
            for n in range(5)
        ]
    data = read_voc(write_voc(tmp_path, "2007", {"trainval": list(images)}, images))
    results = [entry for n in range(2) for entry in perturbed_truth(data, seed + 10 * n)]
    labels = [CLASSES.index("cat") + 1, VOC_DOG]
    official = np.array([[devkit_ap50(data, results, label, t) for t in THRESHOLDS] for label in labels])
    eleven, area = np.moveaxis(official.mean(axis=0), -1, 0)
    expected = {"AP": eleven.mean(), "AP50": eleven[0], "AP75": eleven[5]}
    expected |= {"AP_area": area.mean(), "AP50_area": area[0], "AP75_area": area[5]}
    assert voc_scores(data, results).values == pytest.approx(expected)
    assert 0.1 < expected["AP50"] < 0.95
