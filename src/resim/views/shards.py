"""Images in tar files (the webdataset layout), read in place: nothing is extracted.

An image in a tar has the path `PATH.tar!OFFSET+SIZE!NAME`: the tar, the position of the image's bytes in it, and its
name in the archive.

Every reader of tars in this package uses `list_shard`, which lists a tar completely or refuses it. It refuses a link, a
device, a sparse file, a name that leads out of the archive or has control characters, and a file that is cut off; the
message names the member and the reason.
"""

from __future__ import annotations

import functools
import io
import os
import re
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import numpy as np

from resim.errors import UserError
from resim.reading import open_descriptor, open_file, read_json
from resim.views.foreign import foreign_archive

INDEX = "shards.json"
WINDOW, STREAMS = 4096, 8  # images that are shuffled together, and the shards that they come from
_READ_AHEAD = 16 * 2**20  # bytes
_LONGEST_HEADER = 2**20  # bytes of all headers of one member, such as its long name and its extended attributes
_MEMBER = re.compile(r"(.*?\.tar)!(\d{1,19})\+(\d{1,19})!(.+)", re.IGNORECASE | re.DOTALL)


class Member(NamedTuple):
    """A file in a tar."""

    name: str
    offset: int
    """Position of its first byte in the tar."""
    size: int
    """Bytes."""


def is_shard(name: str) -> bool:
    """Whether a file name is that of a tar."""
    return name.lower().endswith(".tar")


def member_path(tar: str, member: Member) -> str:
    """The path of an image in a tar."""
    return f"{tar}!{member.offset}+{member.size}!{member.name}"


def split_member_path(path: str) -> tuple[str, Member] | None:
    """The tar and the member of a path from `member_path`; None for any other path, also of a file of such a name."""
    match = _MEMBER.fullmatch(path)
    if match is None or (_has_such_names(os.path.dirname(match[1])) and os.path.lexists(path)):  # noqa: PTH120
        return None
    return match[1], Member(match[4], int(match[2]), int(match[3]))


@functools.lru_cache(maxsize=64)
def _has_such_names(folder: str) -> bool:
    """Whether a folder has files whose names look like the paths of images in a tar; almost none has."""
    try:
        with os.scandir(folder or ".") as entries:
            return any(".tar!" in entry.name.lower() for entry in entries)
    except OSError:
        return False


def open_image(path: str) -> BinaryIO:
    """An image file, or an image in a tar, open for reading.

    Raises:
        NotRegularError: the path leads to a pipe, a socket or a device.
        OSError: the file or the tar cannot be read, or the tar ends before the image does.
    """
    parts = split_member_path(path)
    return open_file(path) if parts is None else io.BytesIO(read_member(*parts))


def read_member(tar: str, member: Member) -> bytes:
    """The bytes of a file in a tar.

    Raises:
        OSError: the tar cannot be read, or ends before the file does.
    """
    descriptor = _Descriptor.of(tar)
    # before memory of this size is taken: the path may stand in a list that anybody wrote
    if member.offset + member.size > os.fstat(descriptor).st_size:
        raise OSError(f"{tar} ends before {member.name!r}: copy it again")
    if hasattr(os, "posix_fadvise"):  # `shard_order` reads its neighbours soon
        os.posix_fadvise(descriptor, member.offset, max(member.size, _READ_AHEAD), os.POSIX_FADV_WILLNEED)
    data = os.pread(descriptor, member.size, member.offset)
    if len(data) < member.size:
        raise OSError(f"{tar} ends before {member.name!r}: copy it again")
    return data


class _Descriptor:
    """An open file, which is closed when the cache of `_open` drops it."""

    def __init__(self, path: str) -> None:
        self.number = open_descriptor(path)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)

    @staticmethod
    def of(path: str) -> int:
        """The descriptor of a file, which stays open while it is among the most recently used."""
        return _open(path).number


@functools.lru_cache(maxsize=2 * STREAMS)
def _open(path: str) -> _Descriptor:
    return _Descriptor(path)


def shard_order(
    lengths: Sequence[int], seed: int, epoch: int, *, window: int = WINDOW, streams: int = STREAMS
) -> np.ndarray:
    """(images,) int64: a random order of the images of consecutive shards that reads each shard front to back.

    Shards are read in a random order, `streams` at a time. These are cut into pieces, and the corresponding pieces make
    a window of about `window` images, which is shuffled. The order is a function of the arguments alone.

    Args:
        lengths: number of images in each shard.
        seed: seed of the run.
        epoch: number of the epoch.
        window: images that are shuffled together.
        streams: shards that are read at the same time.
    """
    generator = np.random.default_rng([2, seed, epoch])
    ends = np.cumsum(lengths).tolist()
    shuffled = generator.permutation(len(lengths))
    order = []
    for first in range(0, len(shuffled), streams):
        opened = [np.arange(ends[i] - lengths[i], ends[i]) for i in shuffled[first : first + streams].tolist()]
        pieces = max(1, round(sum(map(len, opened)) / window))
        cut = [np.array_split(shard, pieces) for shard in opened]
        order += [generator.permutation(np.concatenate(piece)) for piece in zip(*cut, strict=True)]
    return np.concatenate(order).astype(np.int64, copy=False)


def list_shard(tar: str, is_wanted: Callable[[str], bool]) -> list[Member]:
    """The files of a tar whose names are wanted and do not start with a dot, in the order of the tar.

    An index that `pack` has written to the folder is used if it belongs to this tar; otherwise the tar is read.

    Args:
        tar: path of the tar.
        is_wanted: whether to list a member of this name.

    Raises:
        UserError: the tar cannot be read, or one of its members, which is named, is refused (see above).
    """
    try:
        size = Path(tar).stat().st_size
        members = _indexed(Path(tar))
        if members is None:
            with open_file(tar) as file:
                members = _scan(tar, file, size)
    except OSError as error:
        raise UserError(f"{tar}: cannot be read ({error.strerror or error})") from None
    for member in members:
        _check_name(tar, member.name)
        if not 0 <= member.offset <= member.offset + member.size <= size:
            raise UserError(f"{tar}: is cut off within {member.name!r}: copy it again")
    return [m for m in members if is_wanted(m.name) and not PurePosixPath(m.name).name.startswith(".")]


class _Headers:
    """The file of a tar for `tarfile`, which may read no header of more than a megabyte and no data."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.tell = file.tell
        self.num_read = 0
        """Bytes read since it was last set to 0."""

    def seek(self, position: int) -> int:
        if position < 0:
            raise tarfile.ReadError(f"a position of {position} bytes")
        return self._file.seek(position)

    def read(self, size: int) -> bytes:
        self.num_read += max(0, size)
        if size < 0 or self.num_read > _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)


def _scan(tar: str, file: BinaryIO, size: int) -> list[Member]:
    """The files of a tar, from its headers; a UserError names what is refused."""
    foreign = foreign_archive(file.read(64))
    file.seek(0)
    headers = _Headers(file)
    members: list[Member] = []
    try:
        with tarfile.open(fileobj=headers, mode="r:") as archive:  # type: ignore[call-overload]
            while (entry := archive.next()) is not None:
                headers.num_read = 0
                archive.members = []  # it would keep every entry, of a kilobyte or more
                if entry.size < 0 or entry.offset_data + entry.size > size:
                    raise UserError(f"{tar}: is cut off within {_shown(entry.name)}: copy it again")
                if _is_file(tar, entry):
                    members.append(Member(entry.name, entry.offset_data, entry.size))
            file.seek(archive.offset)  # a damaged header behind the first ends `tarfile`'s list without an error
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError(f"the header at byte {archive.offset:,} is damaged: copy the file again")
    except UserError:
        raise
    except Exception as error:  # of a damaged header `tarfile` raises any exception
        nested = isinstance(error, RecursionError)
        reason = foreign or ("its headers are chained without end" if nested else str(error) or type(error).__name__)
        raise UserError(f"{tar}: is not a readable tar file: {reason}") from None
    return members


def _shown(name: str) -> str:
    """A name for a message, which it does not fill."""
    return repr(name if len(name) <= 200 else f"{name[:200]}...")


def _is_file(tar: str, entry: tarfile.TarInfo) -> bool:
    _check_name(tar, entry.name)
    if entry.isdir():
        return False
    if not entry.isreg() or entry.issparse():
        raise UserError(f"{tar}: {_shown(entry.name)} is a link, a device or a sparse file: pack the files themselves")
    return True


def _check_name(tar: str, name: str) -> None:
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or re.match(r"[A-Za-z]:", name):
        raise UserError(f"{tar}: {_shown(name)} leads out of the archive: pack it again with plain names")
    if any(ord(letter) < 32 for letter in name):
        raise UserError(f"{tar}: {_shown(name)} has control characters: pack it again with plain names")
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        raise UserError(f"{tar}: {_shown(name)} has half a character: pack it again with plain names") from None


def _indexed(tar: Path) -> list[Member] | None:
    """The members of a tar from the index that `pack` writes; None without an index of this tar."""
    try:
        index = tar.parent / INDEX
        entry = _read_index(str(index), index.stat().st_mtime_ns)[tar.name]
        if entry["bytes"] != tar.stat().st_size:
            return None
        return [Member(str(name), int(offset), int(size)) for name, offset, size in entry["members"]]
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None


@functools.lru_cache(maxsize=1)
def _read_index(path: str, changed: int) -> dict[str, dict]:
    return read_json(path)["shards"]
