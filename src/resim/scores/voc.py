"""PASCAL VOC's average precision of boxes, by both of its official definitions.

Shapes: d detections, g ground-truth boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from resim.datasets.records import DetectionData
from resim.scores.results import Scores, check_results

THRESHOLDS = np.arange(50, 100, 5) / 100  # of IoU, as in COCO


@dataclass(frozen=True)
class _GroundTruth:
    boxes: np.ndarray  # (g, 4)
    ignored: np.ndarray  # (g,) bool, difficult or crowd


def voc_scores(data: DetectionData, results: Sequence[dict[str, Any]], *, source: str = "results") -> Scores:
    """VOC's AP50 by the definitions of 2007 (11 points) and of 2010 and later (area under the curve); AP and AP75.

    As in VOC's devkit (VOCevaldet.m), the detections of a class are processed by descending score. Each is compared
    with the box of its class and image that it overlaps most, and is right from IoU 0.5 on if no earlier detection
    matched that box; otherwise it is wrong. A detection that overlaps a difficult box most is neither, and difficult
    boxes do not count as objects. VOC's widths count pixels from the first to the last (+1); for the boxes of records,
    which end at the right edge of the last pixel, this is x1 - x0, so that overlaps equal those of the devkit.

    AP50 of two implementations may differ if an IoU is exactly 0.5: here and in the devkit the box is matched, in
    Detectron2 and the Python port of Fast R-CNN it is not. Detectron2 also rounds boxes and scores in its result files.

    Args:
        data: the ground truth, of any layout. Crowd regions count as difficult boxes.
        results: detections in the form of COCO results: `image_id`, `category_id`, `bbox` (x, y, width, height, from
            0), `score`.
        source: of the results, for messages.

    Returns:
        `values`: `AP50`, `AP75` and `AP` (mean over IoU 0.50:0.05:0.95) by the definition of 2007, by which
        papers report VOC 2007 test (Detectron2); `AP50_area`, `AP75_area` and `AP_area` by that of 2010.
        From 0 to 1, means over the classes with a box that is not difficult. `per_class`: AP50 of 2007.

    Raises:
        UserError: the results are not of this data set.
    """
    check_results(data, results, "bbox", source)
    eleven = np.full((len(data.classes), len(THRESHOLDS)), np.nan)
    area = np.full_like(eleven, np.nan)
    by_category: dict[int, list[dict[str, Any]]] = {number: [] for number in data.category_ids}
    for entry in results:
        by_category[entry["category_id"]].append(entry)
    for index, number in enumerate(data.category_ids):
        truth = _boxes_by_image(data, index + 1)
        num_boxes = sum(int((~image.ignored).sum()) for image in truth.values())
        if not num_boxes:
            continue
        right, wrong = _match_detections(by_category[number], truth)
        for t in range(len(THRESHOLDS)):
            recall, precision = precision_recall(right[t], wrong[t], num_boxes)
            eleven[index, t] = ap_eleven_points(recall, precision)
            area[index, t] = ap_area(recall, precision)
    values = {}
    for suffix, table in (("", eleven), ("_area", area)):
        rows = table[~np.isnan(table[:, 0])]  # of the classes with a box
        means = rows.mean(axis=0) if len(rows) else np.full(len(THRESHOLDS), np.nan)
        values |= {
            f"AP{suffix}": float(means.mean()),
            f"AP50{suffix}": float(means[0]),
            f"AP75{suffix}": float(means[5]),
        }
    per_class = {name: float(eleven[index, 0]) for index, name in enumerate(data.classes)}
    return Scores(kind="bbox", values=values, per_class=per_class)


def precision_recall(right: np.ndarray, wrong: np.ndarray, num_boxes: int) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision (d,) after each detection, from (d,) bool by descending score."""
    num_right, num_wrong = np.cumsum(right), np.cumsum(wrong)
    # a detection on a difficult box is neither right nor wrong: before the first that counts, 0 of 0
    return num_right / num_boxes, num_right / np.maximum(num_right + num_wrong, 1)


def ap_eleven_points(recall: np.ndarray, precision: np.ndarray) -> float:
    """VOC 2007: the mean over recalls 0, 0.1, ..., 1 of the largest precision at that recall or a higher one.

    Source: Everingham et al., IJCV 2010, section 4.2.
    """
    # k / 10, since three steps of 0.1 exceed 3/10
    precisions = [precision[recall >= point / 10] for point in range(11)]
    return float(np.mean([values.max() if len(values) else 0.0 for values in precisions]))


def ap_area(recall: np.ndarray, precision: np.ndarray) -> float:
    """VOC 2010 and later: the area under the largest precision at each recall or a higher one."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * envelope).sum())


def _boxes_by_image(data: DetectionData, label: int) -> dict[int | str, _GroundTruth]:
    truth: dict[int | str, _GroundTruth] = {}
    for record in data.records:
        chosen = record.labels == label
        if chosen.any():
            truth[record.image_id] = _GroundTruth(record.boxes[chosen], (record.difficult | record.crowd)[chosen])
    return truth


def _match_detections(
    results: list[dict[str, Any]], truth: dict[int | str, _GroundTruth]
) -> tuple[np.ndarray, np.ndarray]:
    """Which detections are right, and which are wrong: (thresholds, d) bool each, by descending score."""
    scores = np.array([entry["score"] for entry in results], dtype=np.float64)
    right = np.zeros((len(THRESHOLDS), len(results)), dtype=bool)
    wrong = np.zeros_like(right)
    matched = {image_id: np.zeros((len(THRESHOLDS), len(image.boxes)), dtype=bool) for image_id, image in truth.items()}
    # stable: equal scores keep the order of the results
    for rank, index in enumerate(np.argsort(-scores, kind="stable").tolist()):
        entry = results[index]
        image = truth.get(entry["image_id"])
        if image is None:
            wrong[:, rank] = True
            continue
        x, y, width, height = entry["bbox"]
        ious = _ious(np.array([x, y, x + width, y + height], dtype=np.float64), image.boxes)
        best = int(ious.argmax())
        overlaps = ious[best] >= THRESHOLDS
        if image.ignored[best]:
            wrong[:, rank] = ~overlaps
            continue
        of_image = matched[entry["image_id"]]
        right[:, rank] = overlaps & ~of_image[:, best]
        wrong[:, rank] = ~right[:, rank]
        of_image[:, best] |= overlaps
    return right, wrong


def _ious(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """IoU of one box (4,) with boxes (g, 4)."""
    corners = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    intersections = np.prod((corners[1] - corners[0]).clip(0), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return intersections / (np.prod(box[2:] - box[:2]) + areas - intersections)
