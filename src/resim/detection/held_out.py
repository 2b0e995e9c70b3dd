"""The images of a data set that measure a trained detector: those that its run held out."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from resim.counts import counted
from resim.datasets.records import DetectionData
from resim.datasets.validation_split import recorded_split, restore_held_out, split_line
from resim.detection.config import DetectRecipe
from resim.detection.prepare import fingerprint, usable
from resim.errors import UserError
from resim.json_text import parse_json


def part_to_score(data: DetectionData, model: Path, recipe: DetectRecipe) -> tuple[DetectionData, str]:
    """The part of a data set that measures a detector, and a line about it: of its run's data the part held out.

    Args:
        data: to score, under the classes of the detector.
        model: the run's folder, or a checkpoint of it.
        recipe: of the run.

    Returns:
        The part that the run held out of these data, else all of them; the line is empty where there is nothing to say.
    """
    folder = model if model.is_dir() else model.parent.parent
    noted = _noted_data(folder)
    split = recorded_split([folder])
    if split is not None:
        held_out = restore_held_out(data, split)[1]
        if held_out.records and fingerprint(held_out) == noted.get("val_hash"):
            rest = counted(len(data) - len(held_out), "image")
            return held_out, f"scored: {split_line(held_out)} (--all-images scores the {rest} of the training too)"
    with contextlib.suppress(UserError):  # nothing to learn from: other data
        if fingerprint(usable(data, recipe)) == noted.get("hash"):
            return (
                data,
                "warning: the detector was trained on these very images: no measure of how good it is on others",
            )
    return data, ""


def _noted_data(folder: Path) -> dict[str, Any]:
    """The entry on the data in a run's config.json; {} where there is none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return dict(parse_json((folder / "config.json").read_text(encoding="utf-8"))["data"])
    return {}
