"""A share of a labelled data set held out to evaluate on, where it has no validation part of its own."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from resim.counts import counted
from resim.datasets.records import DetectionData, HeldOut
from resim.datasets.repair import Repairs
from resim.errors import UserError

_STREAM = 9  # before the seed: other draws than those of --fraction
_COPY = ".rf."  # Roboflow's exports have augmented copies of one image: NAME.rf.HASH.jpg


def hold_out(data: DetectionData, fraction: float, seed: int) -> tuple[DetectionData, DetectionData]:
    """Split the images at random: what is left to train on, and what is evaluated on, both in the order of the data.

    Entries of one file, and Roboflow's copies of one image, stay together, so that no picture is in both parts.

    Args:
        data: the whole.
        fraction: of the images, rounded to a whole number of at least 1, above 0 and below 1.
        seed: 0 or more; the same data, fraction and seed give the same split.

    Raises:
        UserError: the fraction is out of its range, or the images are too few for two parts.
    """
    check_fraction(fraction)
    pictures: dict[str, list[int]] = {}
    for index, record in enumerate(data.records):
        pictures.setdefault(_picture(record.image), []).append(index)
    if len(pictures) < 2:
        raise UserError(
            f"--val-fraction {fraction:g}: {data.source} has {counted(len(pictures), 'image')}, two are needed at least"
        )
    groups = list(pictures.values())
    wanted = max(1, round(fraction * len(data)))
    chosen: set[int] = set()
    left = len(groups)
    for place in np.random.default_rng([_STREAM, seed]).permutation(len(groups)):
        if len(chosen) >= wanted or left == 1:
            break
        chosen.update(groups[place])
        left -= 1
    ids = [data.records[index].image_id for index in sorted(chosen)]
    return _parts(data, HeldOut(fraction=fraction, seed=seed, image_ids=tuple(ids)))


def hold_out_again(data: DetectionData, stored: Mapping[str, Any]) -> tuple[DetectionData, DetectionData]:
    """The split that a run began with, whatever images have gone since.

    Args:
        data: the whole.
        stored: `recorded_split` of the run.
    """
    ids = tuple(stored["val_images"])
    return _parts(data, HeldOut(fraction=stored["val_fraction"], seed=stored["seed"], image_ids=ids))


def recorded_split(folders: Iterable[Path]) -> dict[str, Any] | None:
    """The split in the config.json of the first of some runs that has one; None: none has."""
    for folder in folders:
        try:
            content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            split = content["data"]["split"]
            if {"val_fraction", "seed", "val_images"} <= set(split):
                return split
        except (OSError, ValueError, KeyError, TypeError):  # what is damaged is said where the run is opened
            continue
    return None


def check_fraction(fraction: float) -> None:
    """Raise a UserError if no part would be left."""
    if not 0 < fraction < 1:
        raise UserError(f"--val-fraction {fraction:g}: must be above 0 and below 1, such as 0.2")


def split_line(val: DetectionData) -> str:
    """For a person: how many images are held out, by what, and which classes have no object among them."""
    assert val.held_out is not None
    split = val.held_out
    labels = np.concatenate([np.zeros(0, dtype=np.int64), *(record.labels for record in val.records)])
    empty = [name for label, name in enumerate(val.classes, start=1) if not (labels == label).any()]
    shown = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
    return (
        f"held out to evaluate on: {len(val)} of {split.images} images with "
        f"{counted(val.num_objects, 'object')}, drawn at random by --val-fraction {split.fraction:g} and "
        f"seed {split.seed}; never trained on" + (f"; no object of {shown} is among them" if empty else "")
    )


def _parts(data: DetectionData, split: HeldOut) -> tuple[DetectionData, DetectionData]:
    held_out = set(split.image_ids)
    split = dataclasses.replace(split, images=len(data))
    rest = tuple(record for record in data.records if record.image_id not in held_out)
    part = tuple(record for record in data.records if record.image_id in held_out)
    source = f"{data.source} (held out by --val-fraction {split.fraction:g}, seed {split.seed})"
    val = dataclasses.replace(data, records=part, source=source, repairs=Repairs(), held_out=split)
    return dataclasses.replace(data, records=rest), val


def _picture(image: str) -> str:
    """What the copies of one picture have in common."""
    path = Path(os.path.realpath(image))
    stem, copy, _ = path.name.partition(_COPY)
    return str(path.with_name(stem + copy)) if stem else str(path)
