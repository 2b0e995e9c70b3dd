"""Checkpoints, written atomically: a reader sees a complete file or none."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch

from resim.errors import UserError, WriteError
from resim.runs.archive import ArchiveWriter, DamagedError
from resim.runs.plain_tensors import load_tensors

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]+\.tmp")


def write_atomically(path: Path, write: Callable[[BinaryIO], object], *, keep_old_as: str | None = None) -> None:
    """Write a file so that a reader sees either the old content or all of the new, even if the program is killed.

    A temporary file in the same folder is written, flushed to the disk and renamed; then the folder is flushed.

    Args:
        path: the file.
        write: writes its content.
        keep_old_as: name in the same folder under which the old file stays, in place of a file of that name.

    Raises:
        WriteError: the disk is full, or the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise WriteError(f"{path.parent}: cannot be written to ({error.strerror})") from None
    try:
        with _File(io.FileIO(descriptor, "wb")) as file:
            write(file)
            file.flush()
            os.fsync(descriptor)
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        if keep_old_as is not None and path.exists():
            _keep_old(path, path.with_name(keep_old_as))
        Path(name).replace(path)
    except OSError as error:
        raise WriteError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        Path(name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # some file systems cannot flush a folder; the file itself is safe
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class _File(io.BufferedWriter):
    """A file without a descriptor for others: Pillow writes to that, and ignores that a disk takes only a part."""

    def fileno(self) -> int:
        raise io.UnsupportedOperation("fileno")


def _keep_old(path: Path, kept: Path) -> None:
    """Give a file a second name, in place of a file of that name."""
    temporary = path.with_name(f".{kept.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        temporary.hardlink_to(path)
        temporary.replace(kept)
    except OSError:  # a file system without hard links: for a moment there is no file of the first name
        path.replace(kept)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporary(folder: Path, names: re.Pattern[str]) -> None:
    """Remove temporary files that a killed program left in a folder: those of files whose whole names match."""
    for path in folder.glob(".*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and names.fullmatch(match["name"]):
            path.unlink(missing_ok=True)


def save_checkpoint(path: Path, state: dict[str, Any], *, keep_old_as: str | None = None) -> None:
    """Write `state` (tensors and plain data) atomically, with a checksum of the whole file.

    Args:
        path: the file.
        state: its content.
        keep_old_as: as in `write_atomically`.

    Raises:
        UserError: as `write_atomically`.
    """

    def write(file: BinaryIO) -> None:
        archive = ArchiveWriter(file)
        torch.save(state, cast("IO[bytes]", archive))
        archive.write_checksum()

    try:
        write_atomically(path, write, keep_old_as=keep_old_as)
    except RuntimeError as error:  # torch raises its own error while it handles that of a failed write
        if not isinstance(error.__context__, OSError):
            raise
        raise WriteError(f"{path}: cannot be written ({error.__context__.strerror})") from None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a file that `save_checkpoint` wrote, onto the CPU. No code in a file is run (`weights_only`).

    Raises:
        DamagedError: the file is truncated, does not match the checksums in it, or is no file of torch.save.
        UserError: the file is missing or cannot be read, there is no memory for it, it has other objects than
            tensors and plain data, or it is no checkpoint of resim.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        kind = DamagedError if error.errno == errno.EIO else UserError  # a sector of the disk that cannot be read
        raise kind(f"{path}: cannot be read ({error.strerror})") from None
    except MemoryError:
        raise UserError(f"{path}: there is no memory to read its {path.stat().st_size} bytes") from None
    state = load_tensors(data, path)
    if not isinstance(state, dict) or "resim" not in state:
        raise UserError(f"{path}: is no checkpoint of resim: resim import reads those of other programs")
    return state
