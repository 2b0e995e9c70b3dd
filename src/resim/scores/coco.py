"""COCO's average precision of boxes, masks and keypoints, by pycocotools or, if installed, faster-coco-eval."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resim.datasets.records import DetectionData, Record
from resim.errors import UserError
from resim.optional_packages import find_optional
from resim.scores.results import FIELDS, Kind, Scores, check_results

# indices in COCOeval.stats; for keypoints there are no small objects
STATS: dict[Kind, dict[str, int]] = {
    "bbox": {"AP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5},
    "segm": {"AP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5},
    "keypoints": {"AP": 0, "AP50": 1, "AP75": 2, "APm": 3, "APl": 4},
}
NUM_SIGMAS = 17  # those of COCO's person, which pycocotools contains


def coco_scores(
    data: DetectionData,
    results: Sequence[dict[str, Any]],
    kinds: Sequence[Kind] = ("bbox",),
    *,
    keypoint_sigmas: Sequence[float] | None = None,
    source: str = "results",
) -> dict[Kind, Scores]:
    """COCO's AP over IoU 0.50:0.05:0.95, AP50, AP75, and AP by size (small, medium, large), as COCOeval computes them.

    As in COCO's evaluation, a detection in a crowd region is neither right nor wrong. In the scores of masks, an object
    whose mask was dropped is such a region. Objects marked difficult count like any other here, unlike in `voc_scores`.
    The size of a detection is that of the scored shape: of its mask in the scores of masks.

    Args:
        data: the ground truth; scores are over all its images.
        results: detections in the form of COCO results: `image_id`, `category_id`, `score`, and `bbox`
            (x, y, width, height), `segmentation` (compressed RLE) or `keypoints`. They are not modified.
        kinds: what to score. Each kind uses only its own field of a detection.
        keypoint_sigmas: K numbers, the spread of each keypoint; None: those of COCO's 17 keypoints of a person.
        source: of the results, for messages.

    Returns:
        Scores by kind, from 0 to 1. A score without objects, such as that of large objects if there are none, is NaN.
        Keypoints have no APs.

    Raises:
        UserError: the results are not of this data set, or the data set does not have a kind.
    """
    scores: dict[Kind, Scores] = {}
    for kind in kinds:
        if kind == "segm" and not data.has_masks:
            raise UserError(f"{data.source}: has no masks, so that masks cannot be scored: score boxes")
        if kind == "keypoints" and not data.has_keypoints:
            raise UserError(f"{data.source}: has no keypoints, so that keypoints cannot be scored: score boxes")
        if kind == "keypoints" and len(keypoint_sigmas or [0] * NUM_SIGMAS) != len(data.keypoint_names):
            raise UserError(f"{data.source}: {len(data.keypoint_names)} keypoints need as many keypoint sigmas")
        check_results(data, results, kind, source)
        scores[kind] = _scores(data, results, kind, keypoint_sigmas)
    return scores


def _scores(
    data: DetectionData, results: Sequence[dict[str, Any]], kind: Kind, sigmas: Sequence[float] | None
) -> Scores:
    evaluation = coco_evaluation(data, results, kind, fast=True)
    if sigmas is not None and kind == "keypoints":
        evaluation.params.kpt_oks_sigmas = np.asarray(sigmas, dtype=np.float64)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = {name: _or_nan(float(evaluation.stats[index])) for name, index in STATS[kind].items()}
    # (IoU, recall, class, all sizes, most detections)
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
    names = [data.classes[data.category_ids.index(number)] for number in evaluation.params.catIds]
    per_class = {name: _or_nan(float(precision[:, :, index].mean())) for index, name in enumerate(names)}
    return Scores(kind=kind, values=values, per_class=per_class)


def _implementation(fast: bool) -> tuple[Any, Any]:
    """pycocotools' classes, or those of faster-coco-eval."""
    faster = find_optional("faster_coco_eval") if fast else None
    if faster is not None:
        return faster.COCO, faster.COCOeval_faster
    return COCO, COCOeval


def coco_evaluation(
    data: DetectionData,
    results: Sequence[dict[str, Any]],
    kind: Kind,
    *,
    ignore_difficult: bool = False,
    fast: bool = False,
) -> COCOeval:
    """A COCOeval of detections, before its `evaluate`. Images and objects are numbered from 1.

    Args:
        data: the ground truth.
        results: detections in this data, in the form of COCO results.
        kind: boxes, masks or keypoints.
        ignore_difficult: ignore objects marked difficult like crowd regions.
        fast: use faster-coco-eval (an extra) if it is installed; it computes the same numbers.
    """
    truth_type, evaluation_type = _implementation(fast)
    # ids may be text, so that images are numbered from 1
    numbers: dict[int | str, int] = {record.image_id: number for number, record in enumerate(data.records, start=1)}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = truth_type()
        truth.dataset = _ground_truth(data, kind, ignore_difficult)
        truth.createIndex()
        detections = [
            {
                "image_id": numbers[entry["image_id"]],
                "category_id": entry["category_id"],
                "score": float(entry["score"]),
                FIELDS[kind]: entry[FIELDS[kind]],  # no other field, from which loadRes would take sizes and shapes
            }
            for entry in results
            if entry["category_id"] in truth.cats
        ]
        return evaluation_type(truth, truth.loadRes(detections) if detections else _no_detections(truth), kind)


def _or_nan(value: float) -> float:
    return float("nan") if value < 0 else value


def _no_detections(truth: Any) -> Any:
    """An empty set of detections, which loadRes does not accept."""
    empty = type(truth)()
    empty.dataset = {**truth.dataset, "annotations": []}
    empty.createIndex()
    return empty


def _ground_truth(data: DetectionData, kind: Kind, ignore_difficult: bool) -> dict[str, Any]:
    images, annotations = [], []
    labels = set(data.keypoint_labels) if kind == "keypoints" else set(range(1, len(data.classes) + 1))
    for number, record in enumerate(data.records, start=1):
        images.append({"id": number, "width": record.width, "height": record.height})
        for index in range(len(record)):
            if int(record.labels[index]) in labels:
                # numbered from 1: to COCOeval, id 0 means "not matched"
                ids = {"id": len(annotations) + 1, "image_id": number}
                annotation = _annotation(data, record, index, kind)
                annotation["iscrowd"] |= int(ignore_difficult and record.difficult[index])
                annotations.append({**annotation, **ids})
    categories = [
        {"id": number, "name": name}
        for label, (number, name) in enumerate(zip(data.category_ids, data.classes, strict=True), start=1)
        if label in labels
    ]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def _annotation(data: DetectionData, record: Record, index: int, kind: Kind) -> dict[str, Any]:
    x0, y0, x1, y1 = record.boxes[index].tolist()
    annotation: dict[str, Any] = {
        "category_id": data.category_ids[int(record.labels[index]) - 1],
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": float(record.areas[index]),
        "iscrowd": int(record.crowd[index]),
    }
    if kind == "segm":
        mask = record.masks[index] if record.masks is not None else None
        annotation["segmentation"] = mask or [[x0, y0, x1, y0, x1, y1, x0, y1]]
        annotation["iscrowd"] |= int(mask is None)
    if kind == "keypoints":
        assert record.keypoints is not None
        points = record.keypoints[index]
        annotation["keypoints"] = points.ravel().tolist()
        annotation["num_keypoints"] = int((points[:, 2] > 0).sum())
    return annotation
