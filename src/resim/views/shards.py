"""Images in tar files (the webdataset layout), read where they lie: nothing is ever extracted.

An image in a tar is named `PATH.tar!OFFSET+SIZE!NAME`: which bytes of which file, and what the archive calls them.
"""

from __future__ import annotations

import functools
import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from resim.errors import UserError

INDEX = "shards.json"
WINDOW, STREAMS = 4096, 8  # images that are shuffled together, from so many shards
_READ_AHEAD = 16 * 2**20  # bytes
_MEMBER = re.compile(r"(.*?\.tar)!(\d+)\+(\d+)!(.+)", re.IGNORECASE | re.DOTALL)


class Member(NamedTuple):
    """A file in a tar."""

    name: str
    offset: int
    size: int


def is_shard(name: str) -> bool:
    """Whether a file is a tar by its name."""
    return name.lower().endswith(".tar")


def member_path(tar: str, member: Member) -> str:
    """How an image in a tar is named."""
    return f"{tar}!{member.offset}+{member.size}!{member.name}"


def split_member_path(path: str) -> tuple[str, Member] | None:
    """Tar and member of a path that `member_path` made; None for any other path."""
    match = _MEMBER.fullmatch(path)
    return match and (match[1], Member(match[4], int(match[2]), int(match[3])))


def open_bytes(path: str) -> str | io.BytesIO:
    """What an image is read from: its path, or its bytes where it lies in a tar.

    Raises:
        OSError: the tar cannot be read, or ends before the image does.
    """
    found = split_member_path(path)
    if found is None:
        return path
    tar, member = found
    descriptor = _Descriptor.of(tar)
    if hasattr(os, "posix_fadvise"):  # the images around it are read soon: see `shard_order`
        os.posix_fadvise(descriptor, member.offset, max(member.size, _READ_AHEAD), os.POSIX_FADV_WILLNEED)
    data = os.pread(descriptor, member.size, member.offset)
    if len(data) < member.size:
        raise OSError(f"{tar} ends before it")
    return io.BytesIO(data)


class _Descriptor:
    """An open file; kept for the next image, closed when it is forgotten."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)

    @staticmethod
    def of(path: str) -> int:
        """The descriptor of a file, opened at most once while it is among the last used."""
        return _open(path).number


@functools.lru_cache(maxsize=2 * STREAMS)
def _open(path: str) -> _Descriptor:
    return _Descriptor(path)


def shard_order(
    lengths: Sequence[int], seed: int, epoch: int, *, window: int = WINDOW, streams: int = STREAMS
) -> np.ndarray:
    """(images,) int64: an order of images that lie one after the other in shards, which reads the shards front to back.

    Shards are drawn in a random order, `streams` at a time. Those are cut into pieces that together make windows of
    about `window` images; a window is shuffled whole. The order is a function of its arguments alone.
    """
    generator = np.random.default_rng([2, seed, epoch])
    ends = np.cumsum(lengths).tolist()
    shuffled = generator.permutation(len(lengths))
    order = []
    for first in range(0, len(shuffled), streams):
        together = [np.arange(ends[i] - lengths[i], ends[i]) for i in shuffled[first : first + streams].tolist()]
        pieces = max(1, round(sum(map(len, together)) / window))
        cut = [np.array_split(shard, pieces) for shard in together]
        order += [generator.permutation(np.concatenate(piece)) for piece in zip(*cut, strict=True)]
    return np.concatenate(order).astype(np.int64)


def list_shard(tar: str, wanted: Callable[[str], bool]) -> list[Member]:
    """The images in a tar, in its order: by the folder's index where it has one of this very tar, else by reading it.

    Raises:
        UserError: it cannot be read, is cut off, or holds a name or a kind of entry that has no place in a data set.
    """
    try:
        members = _indexed(Path(tar))
        if members is None:
            with tarfile.open(tar, "r:") as archive:
                members = [Member(i.name, i.offset_data, i.size) for i in archive if _is_file(tar, i)]
        size = Path(tar).stat().st_size
    except tarfile.TarError as error:
        packed = " (compressed? gunzip it: images are read from its middle)" if "header" in str(error) else ""
        raise UserError(f"{tar}: is no tar file that can be read: {error}{packed}") from None
    except OSError as error:
        raise UserError(f"{tar}: cannot be read ({error.strerror})") from None
    for member in members:
        _check_name(tar, member.name)
        if not 0 <= member.offset <= member.offset + member.size <= size:
            raise UserError(f"{tar}: is cut off within {member.name!r}: copy it again")
    return [m for m in members if wanted(m.name) and not PurePosixPath(m.name).name.startswith(".")]


def _is_file(tar: str, entry: tarfile.TarInfo) -> bool:
    _check_name(tar, entry.name)
    if entry.isdir():
        return False
    if not entry.isreg() or entry.issparse():
        raise UserError(f"{tar}: {entry.name!r} is a link, a device or a sparse file: pack the images themselves")
    return True


def _check_name(tar: str, name: str) -> None:
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or re.match(r"[A-Za-z]:", name):
        raise UserError(f"{tar}: {name!r} leads out of the archive: not read; pack it again with plain names")
    if any(ord(letter) < 32 for letter in name):
        raise UserError(f"{tar}: {name!r} has control characters in it: not read; pack it again with plain names")


def _indexed(tar: Path) -> list[Member] | None:
    """Its members by the index that `pack` writes; None if there is none, or of another file."""
    try:
        index = tar.parent / INDEX
        entry = _read_index(str(index), index.stat().st_mtime_ns)[tar.name]
        if entry["bytes"] != tar.stat().st_size:
            return None
        return [Member(str(name), int(offset), int(size)) for name, offset, size in entry["members"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


@functools.lru_cache(maxsize=1)
def _read_index(path: str, changed: int) -> dict[str, dict]:
    return json.loads(Path(path).read_bytes())["shards"]
