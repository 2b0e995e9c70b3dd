"""Checkpoints, written atomically: a reader sees a complete file or none."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from resim.errors import UserError
from resim.runs.plain_tensors import load_tensors


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that a reader sees either the old content or all of the new, even if the program is killed.

    A temporary file in the same folder is written, flushed to the disk and renamed; then the folder is flushed.

    Raises:
        UserError: the disk is full, or the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise UserError(f"{path.parent}: cannot be written to ({error.strerror})") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        Path(name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # some file systems cannot flush a folder; the file itself is safe
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain data) atomically.

    Raises:
        UserError: as `write_atomically`.
    """
    try:
        write_atomically(path, lambda file: torch.save(state, file))
    except RuntimeError as error:  # torch raises its own error while it handles that of a failed write
        if not isinstance(error.__context__, OSError):
            raise
        raise UserError(f"{path}: cannot be written ({error.__context__.strerror})") from None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a file that `save_checkpoint` wrote, onto the CPU. No code in a file is run (`weights_only`).

    Raises:
        UserError: the file is missing, truncated, does not match the checksums in it, has other objects than tensors
            and plain data, or is no checkpoint of resim.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    state = load_tensors(data, path)
    if not isinstance(state, dict) or "resim" not in state:
        raise UserError(f"{path}: is no checkpoint of resim: resim import reads those of other programs")
    return state
