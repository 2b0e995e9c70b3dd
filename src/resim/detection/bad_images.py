"""Images of a data set that cannot be decoded: not scored, and recorded, so that runs can be resumed without them.

`bad_images.json` in a run's folder holds the annotations of such images and their places in the data. A run that is
resumed after they were deleted puts them back as images that cannot be decoded: its random numbers stay the same.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from resim.counts import counted
from resim.datasets.records import DetectionData, Record
from resim.errors import UserError
from resim.reading import read_json
from resim.runs.checkpoints import write_atomically

FILE = "bad_images.json"
LEAST = 50  # images, below which no share of bad ones stops anything, as in pre-training
Part = Literal["train", "val"]


def remember(out: Path, part: Part, data: DetectionData, paths: Collection[str]) -> None:
    """Write the annotations of the images at some paths into a run's folder, in addition to those already there."""
    stored = _read(out)
    known = {entry["image_id"] for entry in stored[part]}
    new = [
        _entry(position, record, data)
        for position, record in enumerate(data.records)
        if record.image in paths and record.image_id not in known
    ]
    if new:
        stored[part] = sorted([*stored[part], *new], key=lambda entry: entry["position"])
        text = json.dumps(stored)
        write_atomically(out / FILE, lambda file: file.write(text.encode()))


def put_back(out: Path, part: Part, data: DetectionData) -> DetectionData:
    """The data with the recorded images that it no longer contains, each in its place."""
    present = {record.image_id for record in data.records}
    records = list(data.records)
    for entry in _read(out)[part]:
        if entry["image_id"] not in present:
            records.insert(entry["position"], _record(entry))
    return dataclasses.replace(data, records=tuple(records))


def without(data: DetectionData, paths: Collection[str]) -> DetectionData:
    """The data without the images at some paths."""
    return dataclasses.replace(data, records=tuple(r for r in data.records if r.image not in paths))


def without_remembered(data: DetectionData, folders: Iterable[Path]) -> DetectionData:
    """The data without the images that the evaluations of some runs excluded."""
    excluded = {entry["image_id"] for folder in folders for entry in _read(folder)["val"]}
    return dataclasses.replace(data, records=tuple(r for r in data.records if r.image_id not in excluded))


def scored_part(data: DetectionData, bad: Mapping[str, str], max_share: float) -> tuple[DetectionData, str]:
    """The images that were decoded, and a line about the others; empty where there are none.

    Args:
        data: whose images a detector was run on.
        bad: why images, by their paths, cannot be decoded.
        max_share: of the images that may be bad.

    Raises:
        UserError: more are bad than that, of at least 50, or all of them.
    """
    if not bad:
        return data, ""
    part = without(data, bad)
    path, reason = next(iter(bad.items()))
    example = f"for example {path} ({reason})"
    if len(data) >= LEAST and len(bad) > max_share * len(data):
        raise UserError(
            f"{data.source}: {len(bad)} of {len(data)} images cannot be decoded, more than --max-bad-share "
            f"{max_share:g}, {example}"
        )
    if not part.records:
        raise UserError(f"{data.source}: none of its {counted(len(data), 'image')} can be decoded, {example}")
    objects = data.num_objects - part.num_objects
    return part, (
        f"not counted: {len(bad)} of {counted(len(data), 'image')}, which cannot be decoded, and "
        f"{counted(objects, 'object')} there, {example}"
    )


def _entry(position: int, record: Record, data: DetectionData) -> dict[str, Any]:
    return {
        "position": position,
        "image": record.image,
        "image_id": record.image_id,
        "width": record.width,
        "height": record.height,
        "boxes": record.boxes.tolist(),
        "labels": record.labels.tolist(),
        "has_mask": None if record.masks is None else record.has_mask.tolist(),
        "keypoints": len(data.keypoint_names) if record.keypoints is not None else None,
        "crowd": record.crowd.tolist(),
        "difficult": record.difficult.tolist(),
        "annotation_ids": record.annotation_ids.tolist(),
        "areas": record.areas.tolist(),
    }


def _record(entry: dict[str, Any]) -> Record:
    """A record that is counted and never decoded: its masks are empty and its keypoints 0."""
    count, width, height = len(entry["labels"]), entry["width"], entry["height"]
    empty = {"size": [height, width], "counts": [height * width]}
    masks = entry["has_mask"]
    keypoints = entry["keypoints"]
    return Record(
        image=entry["image"],
        image_id=entry["image_id"],
        width=width,
        height=height,
        boxes=np.array(entry["boxes"], dtype=np.float64).reshape(-1, 4),
        labels=np.array(entry["labels"], dtype=np.int64),
        masks=None if masks is None else tuple(empty if has else None for has in masks),
        keypoints=None if keypoints is None else np.zeros((count, keypoints, 3)),
        crowd=np.array(entry["crowd"], dtype=bool),
        difficult=np.array(entry["difficult"], dtype=bool),
        annotation_ids=np.array(entry["annotation_ids"], dtype=np.int64),
        areas=np.array(entry["areas"], dtype=np.float64),
    )


def _read(out: Path) -> dict[str, list[dict[str, Any]]]:
    path = out / FILE
    stored = read_json(path) if path.exists() else {}
    return {"train": stored.get("train", []), "val": stored.get("val", [])}
