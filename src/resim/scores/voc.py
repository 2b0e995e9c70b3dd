"""PASCAL VOC's average precision of boxes, by both of its official definitions.

Shapes: d detections, g boxes of the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from resim.datasets.records import DetectionData
from resim.scores.results import Scores, check_results

THRESHOLDS = np.arange(50, 100, 5) / 100  # of IoU, COCO's


@dataclass(frozen=True)
class _Truth:
    boxes: np.ndarray  # (g, 4)
    ignored: np.ndarray  # (g,) bool, difficult or crowd


def voc_scores(data: DetectionData, results: Sequence[dict[str, Any]], *, source: str = "results") -> Scores:
    """VOC's AP50 by the definitions of 2007 (11 points) and of 2010 and later (area under the curve); AP and AP75.

    As VOC's devkit does (VOCevaldet.m): detections of a class are taken by falling score; each is compared with the
    box of the same class and image that it overlaps most; from IoU 0.5 it finds it, once: a second detection of the
    same box is wrong. One that overlaps a difficult box most is neither right nor wrong, and difficult boxes are not
    counted among those to find. VOC's widths count pixels from the first to the last (+1); on the records' boxes,
    where the last pixel's right edge is the end, this is the plain width, so that overlaps are the devkit's.

    AP50 of two implementations may differ where an IoU is exactly 0.5: the devkit (and this) finds the box, the
    Python port of Fast R-CNN and Detectron2 do not; Detectron2 also rounds boxes and scores in its result files.

    Args:
        data: the truth; any layout (without difficult boxes outside VOC). Crowd regions count as difficult boxes.
        results: detections in the form of COCO results: `image_id`, `category_id`, `bbox` (x, y, width, height, from
            0), `score`.
        source: where the results come from, for messages.

    Returns:
        `values`: `AP50`, `AP75` and `AP` (mean over IoU 0.50:0.05:0.95) by the definition of 2007, which is how
        papers report VOC 2007 test (Detectron2); `AP50_area`, `AP75_area` and `AP_area` by that of 2010.
        From 0 to 1, means over the classes that have a box to find. `per_class`: AP50 of 2007.

    Raises:
        UserError: results that are not of this data set.
    """
    check_results(data, results, "bbox", source)
    eleven = np.full((len(data.classes), len(THRESHOLDS)), np.nan)
    area = np.full_like(eleven, np.nan)
    by_category: dict[int, list[dict[str, Any]]] = {number: [] for number in data.category_ids}
    for entry in results:
        by_category[entry["category_id"]].append(entry)
    for index, number in enumerate(data.category_ids):
        truth = _truth_of(data, index + 1)
        num_boxes = sum(int((~image.ignored).sum()) for image in truth.values())
        if not num_boxes:
            continue
        right, wrong = _match(by_category[number], truth)
        for at in range(len(THRESHOLDS)):
            recall, precision = curve(right[at], wrong[at], num_boxes)
            eleven[index, at] = ap_eleven_points(recall, precision)
            area[index, at] = ap_area(recall, precision)
    values = {}
    for end, table in (("", eleven), ("_area", area)):
        counted = table[~np.isnan(table[:, 0])]
        means = counted.mean(axis=0) if len(counted) else np.full(len(THRESHOLDS), np.nan)
        values |= {f"AP{end}": float(means.mean()), f"AP50{end}": float(means[0]), f"AP75{end}": float(means[5])}
    per_class = {name: float(eleven[index, 0]) for index, name in enumerate(data.classes)}
    return Scores(kind="bbox", values=values, per_class=per_class)


def curve(right: np.ndarray, wrong: np.ndarray, num_boxes: int) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision (d,) after each detection, from (d,) bool by falling score."""
    num_right, num_wrong = np.cumsum(right), np.cumsum(wrong)
    # a detection on a difficult box is neither: before the first that counts, 0 of 0
    return num_right / num_boxes, num_right / np.maximum(num_right + num_wrong, 1)


def ap_eleven_points(recall: np.ndarray, precision: np.ndarray) -> float:
    """VOC 2007: the mean over recalls 0, 0.1, ..., 1 of the best precision at that recall or a higher one.

    Source: Everingham et al., IJCV 2010, section 4.2.
    """
    # k / 10, not steps of 0.1: a recall of 3/10 does reach 0.3
    reached = [precision[recall >= point / 10] for point in range(11)]
    return float(np.mean([best.max() if len(best) else 0.0 for best in reached]))


def ap_area(recall: np.ndarray, precision: np.ndarray) -> float:
    """VOC 2010 and later: the area under the precision made falling: at each recall the best at it or a higher one."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * envelope).sum())


def _truth_of(data: DetectionData, label: int) -> dict[int | str, _Truth]:
    truth: dict[int | str, _Truth] = {}
    for record in data.records:
        own = record.labels == label
        if own.any():
            truth[record.image_id] = _Truth(record.boxes[own], (record.difficult | record.crowd)[own])
    return truth


def _match(results: list[dict[str, Any]], truth: dict[int | str, _Truth]) -> tuple[np.ndarray, np.ndarray]:
    """Which detections are right and which are wrong, (thresholds, d) bool each, by falling score."""
    scores = np.array([entry["score"] for entry in results], dtype=np.float64)
    right = np.zeros((len(THRESHOLDS), len(results)), dtype=bool)
    wrong = np.zeros_like(right)
    taken = {image_id: np.zeros((len(THRESHOLDS), len(image.boxes)), dtype=bool) for image_id, image in truth.items()}
    # stable: equal scores keep the order of the results
    for at, index in enumerate(np.argsort(-scores, kind="stable").tolist()):
        entry = results[index]
        image = truth.get(entry["image_id"])
        if image is None:
            wrong[:, at] = True
            continue
        x, y, width, height = entry["bbox"]
        ious = _ious(np.array([x, y, x + width, y + height], dtype=np.float64), image.boxes)
        best = int(ious.argmax())
        enough = ious[best] >= THRESHOLDS
        if image.ignored[best]:
            wrong[:, at] = ~enough
            continue
        mine = taken[entry["image_id"]]
        right[:, at] = enough & ~mine[:, best]
        wrong[:, at] = ~right[:, at]
        mine[:, best] |= enough
    return right, wrong


def _ious(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """IoU of one box (4,) with boxes (g, 4)."""
    corners = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    inside = np.prod((corners[1] - corners[0]).clip(0), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return inside / (np.prod(box[2:] - box[:2]) + areas - inside)
