"""A detector's scores on a data set, by the evaluation that belongs to it, written down with a picture."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resim.datasets.records import DetectionData, Record
from resim.detection.config import DetectorConfig
from resim.detection.pictures import detection_sheet
from resim.detection.samples import read_pixels
from resim.draw.sheet import write_png
from resim.errors import UserError
from resim.runs.checkpoints import write_atomically
from resim.runs.lines import REMEDY, read_records
from resim.runs.pictures import Pictures
from resim.scores.cityscapes import INSTALL, cityscapes_scores
from resim.scores.coco import NUM_SIGMAS, coco_scores
from resim.scores.results import Kind, Scores
from resim.scores.voc import voc_scores
from resim.views.decode import BadImageError

SHEET_IMAGES = 6


def official_scores(
    data: DetectionData, results: Sequence[dict[str, Any]], kinds: Sequence[Kind], *, source: str = "results"
) -> dict[str, Scores]:
    """Scores by the evaluation that belongs to the data set's layout.

    COCO: pycocotools for each kind. VOC: `bbox` by VOC's definitions. Cityscapes: `segm` by cityscapesScripts where it
    is installed, under `cityscapes`, and COCO's of boxes and masks.

    Args:
        data: the truth.
        results: in the form of COCO results.
        kinds: of the detections; those that the truth lacks are excluded, and keypoints other than COCO's 17, whose
            tolerances are not known.
        source: of the results, for messages.

    Raises:
        UserError: results of another data set, or nothing that can be scored.
    """
    if data.kind == "voc":
        return {"bbox": voc_scores(data, results, source=source)}
    has = {"bbox": True, "segm": data.has_masks, "keypoints": len(data.keypoint_names) == NUM_SIGMAS}
    if not any(has[kind] for kind in kinds):
        raise UserError(f"{source}: has {', '.join(kinds)}, for which nothing in {data.source} can be scored")
    scores: dict[str, Scores] = {**coco_scores(data, results, [kind for kind in kinds if has[kind]], source=source)}
    if data.kind == "cityscapes" and "segm" in kinds and importlib.util.find_spec("cityscapesscripts"):
        scores["cityscapes"] = cityscapes_scores(data, results, source=source)
    return scores


def lines(scores: dict[str, Scores], data: DetectionData) -> list[str]:
    """For a person: one line a kind, in percent."""
    text = []
    for kind, score in scores.items():
        cells = [f"{name} {'-' if math.isnan(value) else f'{100 * value:.2f}'}" for name, value in score.values.items()]
        text.append(f"{kind:<9} " + "  ".join(cells))
    if data.kind == "cityscapes" and "cityscapes" not in scores and "segm" in scores:
        text.append(f"these are COCO's scores; Cityscapes' own need cityscapesScripts: {INSTALL}")
    if data.has_keypoints and len(data.keypoint_names) != NUM_SIGMAS:
        count = len(data.keypoint_names)
        text.append(f"keypoints are not scored: COCO's tolerances are of {NUM_SIGMAS} keypoints, these are {count}")
    return text


def plain(scores: dict[str, Scores]) -> dict[str, dict[str, float | None]]:
    """As JSON data; None where there is no object."""
    return {
        kind: {name: None if math.isnan(value) else value for name, value in score.values.items()}
        for kind, score in scores.items()
    }


def kinds_of(detector: DetectorConfig) -> tuple[Kind, ...]:
    """What such a detector's results hold."""
    return ("bbox", "segm") if detector.masks else ("bbox", "keypoints") if detector.keypoints else ("bbox",)


def write_evaluation(
    out: Path, data: DetectionData, results: Sequence[dict[str, Any]], scores: dict[str, Scores], *, step: int,
    name: str, title: str, go_on: bool = False, pictures: Pictures | None = None,
) -> None:  # fmt: skip
    """Write the results of an evaluation into a folder.

    A line of `scores.jsonl` (`step`, `images`, `scores`, `per_class`),
    `results.json` in the form of COCO results, and `pictures/detections.png` of some images.

    Args:
        out: the folder.
        data: the truth.
        results: of all its images.
        scores: of them.
        step: after which the detector was evaluated.
        name: of the detector, on the picture.
        title: of the picture.
        go_on: keep the lines of `scores.jsonl` that are of earlier steps, as a run does; else it has this line alone.
        pictures: of a training, which goes on without a picture that cannot be written; None: it is an error.

    Raises:
        WriteError: the disk is full, or the folder cannot be written to.
    """
    per_class = {
        kind: {c: None if math.isnan(v) else v for c, v in score.per_class.items()} for kind, score in scores.items()
    }
    entry = {"step": step, "images": len(data), "scores": plain(scores), "per_class": per_class}
    earlier = [line for line in read_scores(out) if line["step"] < step] if go_on else []
    text = "".join(json.dumps(line) + "\n" for line in [*earlier, entry])
    write_atomically(out / "scores.jsonl", lambda file: file.write(text.encode()))
    content = json.dumps(list(results))
    write_atomically(out / "results.json", lambda file: file.write(content.encode()))
    images = sheet_images(data)
    if not images:
        return
    sheet = detection_sheet(data, images, [(name, f"after {step} steps", results)], title=title)
    path = out / "pictures" / "detections.png"
    if pictures is None:
        write_png(path, sheet)
    else:
        pictures.write(lambda: write_png(path, sheet))


def sheet_images(data: DetectionData) -> list[tuple[Record, np.ndarray]]:
    """The first images with objects, as many as fit a sheet, with their pixels."""
    pictures = []
    for record in data.records:
        if len(record) and len(pictures) < SHEET_IMAGES:
            with contextlib.suppress(BadImageError):
                pictures.append((record, read_pixels(record)))
    return pictures


def read_scores(out: Path) -> list[dict[str, Any]]:
    """Every evaluation of a run, in order: `step`, `images`, `scores`, `per_class`.

    Raises:
        UserError: a line of scores.jsonl is damaged.
    """
    scores = read_records(out / "scores.jsonl")
    if not all(isinstance(line.get("scores"), dict) for line in scores):
        raise UserError(f"{out / 'scores.jsonl'}: a line has no scores: {REMEDY}")
    return scores
