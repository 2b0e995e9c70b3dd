"""COCO's average precision of boxes, masks and keypoints, by pycocotools or, where it is installed, its faster twin."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resim.datasets.records import DetectionData, Record
from resim.errors import UserError
from resim.scores.results import FIELDS, Kind, Scores, check_results

# positions in COCOeval.stats; keypoints have no small objects
STATS: dict[Kind, dict[str, int]] = {
    "bbox": {"AP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5},
    "segm": {"AP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5},
    "keypoints": {"AP": 0, "AP50": 1, "AP75": 2, "APm": 3, "APl": 4},
}
NUM_SIGMAS = 17  # of COCO's person, for which pycocotools knows them


def coco_scores(
    data: DetectionData,
    results: Sequence[dict[str, Any]],
    kinds: Sequence[Kind] = ("bbox",),
    *,
    keypoint_sigmas: Sequence[float] | None = None,
    source: str = "results",
) -> dict[Kind, Scores]:
    """COCO's AP over IoU 0.50:0.05:0.95, AP50, AP75, and by size (small, medium, large): what COCOeval computes.

    Crowd regions count as COCO's evaluation does: a detection in one is neither right nor wrong. An object that has
    lost its mask is such a region in the scores of masks. Boxes marked difficult are objects like any other here;
    `voc_scores` leaves them out. A detection's size is that of what is scored: of its mask for masks.

    Args:
        data: the truth; scores are over all its images.
        results: detections in the form of COCO results: `image_id`, `category_id`, `score`, and `bbox`
            (x, y, width, height), `segmentation` (compressed RLE) or `keypoints`. They are not changed.
        kinds: what to score. Of detections that hold several, each kind uses its own.
        keypoint_sigmas: K numbers, how far each keypoint scatters; None: COCO's, of 17 keypoints of a person.
        source: where the results come from, for messages.

    Returns:
        Scores by kind, from 0 to 1. A score with nothing to find, such as of large objects where there are none, is
        NaN. Keypoints have no APs.

    Raises:
        UserError: results that are not of this data set, or a kind that the data set has not.
    """
    scores: dict[Kind, Scores] = {}
    for kind in kinds:
        if kind == "segm" and not data.has_masks:
            raise UserError(f"{data.source}: no masks to score against")
        if kind == "keypoints" and not data.has_keypoints:
            raise UserError(f"{data.source}: no keypoints to score against")
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
    values = {name: _or_nan(float(evaluation.stats[at])) for name, at in STATS[kind].items()}
    # (IoU, recall, class, all sizes, most detections)
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
    names = [data.classes[data.category_ids.index(number)] for number in evaluation.params.catIds]
    per_class = {name: _or_nan(float(precision[:, :, at].mean())) for at, name in enumerate(names)}
    return Scores(kind=kind, values=values, per_class=per_class)


def _implementation(fast: bool) -> tuple[Any, Any]:
    """pycocotools' classes, or those of faster-coco-eval."""
    if fast and importlib.util.find_spec("faster_coco_eval"):
        faster: Any = importlib.import_module("faster_coco_eval")
        return faster.COCO, faster.COCOeval_faster
    return COCO, COCOeval


def coco_evaluation(
    data: DetectionData,
    results: Sequence[dict[str, Any]],
    kind: Kind,
    *,
    difficult_aside: bool = False,
    fast: bool = False,
) -> COCOeval:
    """pycocotools' evaluation of detections, before its first step. Images and objects are numbered from 1.

    Args:
        data: the truth.
        results: in the form of COCO results, of this data.
        kind: what is compared.
        difficult_aside: objects marked difficult are set aside like crowd regions.
        fast: by faster-coco-eval (an extra) where it is installed, which computes the same numbers.
    """
    truth_type, evaluation_type = _implementation(fast)
    # images are numbered anew, from 1: ids may be text
    numbers: dict[int | str, int] = {record.image_id: number for number, record in enumerate(data.records, start=1)}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = truth_type()
        truth.dataset = _truth(data, kind, difficult_aside)
        truth.createIndex()
        found = [
            {
                "image_id": numbers[entry["image_id"]],
                "category_id": entry["category_id"],
                "score": float(entry["score"]),
                FIELDS[kind]: entry[FIELDS[kind]],  # nothing else, or loadRes takes sizes and shapes from it
            }
            for entry in results
            if entry["category_id"] in truth.cats
        ]
        return evaluation_type(truth, truth.loadRes(found) if found else _none(truth), kind)


def _or_nan(value: float) -> float:
    return float("nan") if value < 0 else value


def _none(truth: Any) -> Any:
    """No detections, which loadRes cannot take."""
    none = type(truth)()
    none.dataset = {**truth.dataset, "annotations": []}
    none.createIndex()
    return none


def _truth(data: DetectionData, kind: Kind, difficult_aside: bool) -> dict[str, Any]:
    images, annotations = [], []
    labels = set(data.keypoint_labels) if kind == "keypoints" else set(range(1, len(data.classes) + 1))
    for number, record in enumerate(data.records, start=1):
        images.append({"id": number, "width": record.width, "height": record.height})
        for index in range(len(record)):
            if int(record.labels[index]) in labels:
                # numbered anew, from 1: COCOeval takes id 0 for "not matched"
                extra = {"id": len(annotations) + 1, "image_id": number}
                annotation = _annotation(data, record, index, kind)
                annotation["iscrowd"] |= int(difficult_aside and record.difficult[index])
                annotations.append({**annotation, **extra})
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
