"""A share of a labelled data set that is held out to evaluate on, for a data set without a validation split."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from resim.counts import counted
from resim.datasets.records import DetectionData, HeldOut
from resim.datasets.repairs import Repairs
from resim.errors import UserError
from resim.json_text import parse_json

_STREAM = 9  # combined with the seed, so that other random numbers are used than for --fraction
_COPY_MARK = ".rf."  # Roboflow exports augmented copies of an image as NAME.rf.HASH.jpg


def hold_out(data: DetectionData, fraction: float, seed: int) -> tuple[DetectionData, DetectionData]:
    """Split the images at random into those to train on and those to evaluate on, both in the order of the data.

    Entries of one file, and Roboflow's copies of one image, stay together, so that no image is in both parts.

    Args:
        data: to be split.
        fraction: of the images, above 0 and below 1; rounded to at least one image.
        seed: 0 or more; the same data, fraction and seed give the same split.

    Raises:
        UserError: the fraction is out of its range, or the images are too few for two parts.
    """
    check_fraction(fraction)
    groups_by_image: dict[str, list[int]] = {}
    for index, record in enumerate(data.records):
        groups_by_image.setdefault(_original(record.image), []).append(index)
    groups = list(groups_by_image.values())
    if len(groups) < 2:
        raise UserError(
            f"--val-fraction {fraction:g}: {data.source} has {counted(len(groups), 'image')}, but needs at least two: "
            "add images, or name a validation set with --val"
        )
    num_wanted = max(1, round(fraction * len(data)))
    chosen: set[int] = set()
    num_left = len(groups)
    for index in np.random.default_rng([_STREAM, seed]).permutation(len(groups)):
        if len(chosen) >= num_wanted or num_left == 1:
            break
        chosen.update(groups[index])
        num_left -= 1
    ids = [data.records[index].image_id for index in sorted(chosen)]
    return _parts(data, HeldOut(fraction=fraction, seed=seed, image_ids=tuple(ids)))


def restore_held_out(data: DetectionData, stored: Mapping[str, Any]) -> tuple[DetectionData, DetectionData]:
    """The split of an earlier run, even if images were removed since then.

    Args:
        data: to be split.
        stored: `recorded_split` of the run.
    """
    ids = tuple(stored["val_images"])
    return _parts(data, HeldOut(fraction=stored["val_fraction"], seed=stored["seed"], image_ids=ids))


def recorded_split(folders: Iterable[Path]) -> dict[str, Any] | None:
    """The split in the first config.json of some runs that has one; None if none has."""
    for folder in folders:
        try:
            content = parse_json((folder / "config.json").read_text(encoding="utf-8"))
            split = content["data"]["split"]
            if {"val_fraction", "seed", "val_images"} <= set(split):
                return split
        except (OSError, ValueError, KeyError, TypeError):  # a damaged file is reported where the run is opened
            continue
    return None


def check_fraction(fraction: float) -> None:
    """Raise a UserError unless both parts can have images."""
    if not 0 < fraction < 1:
        raise UserError(f"--val-fraction {fraction:g}: must be above 0 and below 1, such as 0.2")


def split_line(val: DetectionData) -> str:
    """A line for the log: how many images are held out, and which classes have no object in them."""
    assert val.held_out is not None
    split = val.held_out
    labels = np.concatenate([np.zeros(0, dtype=np.int64), *(record.labels for record in val.records)])
    empty = [name for label, name in enumerate(val.classes, start=1) if not (labels == label).any()]
    shown = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
    return (
        f"held out to evaluate on: {len(val)} of {split.images} images with "
        f"{counted(val.num_objects, 'object')}, sampled by --val-fraction {split.fraction:g} and seed {split.seed}; "
        "never trained on" + (f"; no object of {shown} is among them" if empty else "")
    )


def _parts(data: DetectionData, split: HeldOut) -> tuple[DetectionData, DetectionData]:
    held_out = set(split.image_ids)
    split = dataclasses.replace(split, images=len(data))
    rest = tuple(record for record in data.records if record.image_id not in held_out)
    part = tuple(record for record in data.records if record.image_id in held_out)
    source = f"{data.source} (held out by --val-fraction {split.fraction:g}, seed {split.seed})"
    val = dataclasses.replace(data, records=part, source=source, repairs=Repairs(), held_out=split)
    return dataclasses.replace(data, records=rest), val


def _original(image: str) -> str:
    """The path of the image of which a file is a copy."""
    path = Path(os.path.realpath(image))
    stem, copy, _ = path.name.partition(_COPY_MARK)
    return str(path.with_name(stem + copy)) if stem else str(path)
