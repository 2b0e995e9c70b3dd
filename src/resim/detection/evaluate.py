"""A data set's own official scores of a set of detections."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from typing import Any

from resim.detection.cityscapes_scores import INSTALL, cityscapes_scores
from resim.detection.coco_scores import coco_scores
from resim.detection.records import DetectionData
from resim.detection.results import Kind, Scores
from resim.detection.voc_scores import voc_scores


def official_scores(
    data: DetectionData, results: Sequence[dict[str, Any]], kinds: Sequence[Kind], *, source: str = "results"
) -> dict[str, Scores]:
    """Scores by the evaluation that belongs to the data set's layout.

    COCO: pycocotools for each kind. VOC: `bbox` by VOC's definitions. Cityscapes: `segm` by cityscapesScripts where it
    is installed, under `cityscapes`, and COCO's of boxes and masks.

    Args:
        data: the truth.
        results: in the form of COCO results.
        kinds: what the detections hold; what the truth has not is left out.
        source: of the results, for messages.

    Raises:
        UserError: results of another data set.
    """
    if data.kind == "voc":
        return {"bbox": voc_scores(data, results, source=source)}
    has = {"bbox": True, "segm": data.has_masks, "keypoints": data.has_keypoints}
    scores: dict[str, Scores] = {**coco_scores(data, results, [kind for kind in kinds if has[kind]], source=source)}
    if data.kind == "cityscapes" and "segm" in kinds and importlib.util.find_spec("cityscapesscripts"):
        scores["cityscapes"] = cityscapes_scores(data, results, source=source)
    return scores


def lines(scores: dict[str, Scores], data: DetectionData) -> list[str]:
    """For a person: one line a kind, in percent."""
    told = []
    for kind, score in scores.items():
        cells = [f"{name} {'-' if math.isnan(value) else f'{100 * value:.2f}'}" for name, value in score.values.items()]
        told.append(f"{kind:<9} " + "  ".join(cells))
    if data.kind == "cityscapes" and "cityscapes" not in scores and "segm" in scores:
        told.append(f"these are COCO's scores; Cityscapes' own need cityscapesScripts: {INSTALL}")
    return told


def plain(scores: dict[str, Scores]) -> dict[str, dict[str, float | None]]:
    """As JSON data; None where there is nothing to find."""
    return {
        kind: {name: None if math.isnan(value) else value for name, value in score.values.items()}
        for kind, score in scores.items()
    }
