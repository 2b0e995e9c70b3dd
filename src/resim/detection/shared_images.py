"""Validation images that are training images too, by their paths or by their bytes."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable

from resim.counts import counted
from resim.datasets.records import DetectionData
from resim.reading import read_file

_MOST_COMPARED = 20_000  # images of both sets, up to which bytes are compared


def shared_images(data: DetectionData, val: DetectionData) -> list[str]:
    """A line that names how many validation images are trained on; empty if none is.

    Files are compared by their paths without links and, in data sets of up to 20,000 images, by their bytes.

    Args:
        data: to train on.
        val: to evaluate on.
    """
    places = {os.path.realpath(record.image) for record in data.records}
    shared = [record.image for record in val.records if os.path.realpath(record.image) in places]
    if len(data) + len(val) <= _MOST_COMPARED:
        known = set(shared)
        shared += _same_bytes(
            (record.image for record in data.records),
            (record.image for record in val.records if record.image not in known),
        )
    if not shared:
        return []
    verb = "is a training image" if len(shared) == 1 else "are training images"
    return [
        f"{len(shared)} of {counted(len(val), 'validation image')} {verb} too, such as {shared[0]}: scores "
        "are too high: evaluate on others, or leave --val out and set --val-fraction 0.2"
    ]


def _same_bytes(train: Iterable[str], val: Iterable[str]) -> list[str]:
    """The files of `val` with the bytes of a file of `train`; only files of equal size are read."""
    by_size: dict[int, list[str]] = defaultdict(list)
    for path in train:
        by_size[_size(path)].append(path)
    digests: dict[int, set[bytes]] = {}
    shared = []
    for path in val:
        size = _size(path)
        if size < 0 or size not in by_size:
            continue
        if size not in digests:
            digests[size] = {_digest(other) for other in by_size[size]} - {b""}
        if _digest(path) in digests[size]:
            shared.append(path)
    return shared


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)  # noqa: PTH202
    except OSError:
        return -1


def _digest(path: str) -> bytes:
    try:
        return hashlib.sha256(read_file(path)).digest()
    except OSError:
        return b""
