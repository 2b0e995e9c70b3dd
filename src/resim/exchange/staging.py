"""Files that are written to a staging folder, verified, and only then moved into place."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError

from resim.errors import UserError
from resim.exchange.targets import ENDINGS, Target

_TORCH_WRITES = re.compile(r"PytorchStreamWriter failed|file write failed|inline_container(?!.*StreamReader)")


def check_out(out: Path, to: Target, source: Path, companions: Mapping[str, str] | None = None) -> None:
    """Check the path to which an export will be written.

    Args:
        out: the file, or the folder of `hub`.
        to: its target.
        source: the file that is exported.
        companions: endings of the files that are written next to `out`, such as `.md`, and their description.

    Raises:
        UserError: another ending, a path that exists, or a file that would be replaced and that no export wrote.
    """
    endings = ENDINGS[to]
    if to != "hub" and out.suffix not in endings:
        raise UserError(f"--out {out}: a file for {to} must end in {' or '.join(endings)}")
    if to == "hub" and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists already: name another folder")
    if to != "hub" and out.is_dir():
        raise UserError(f"--out {out}: is a folder, a file is needed")
    if out.exists() and out.samefile(source):
        raise UserError(
            f"--out {out}: is the checkpoint itself, and an export contains only a part of it: name another file"
        )
    for ending, description in (companions or {}).items():
        path = out.with_suffix(ending)
        if path.exists() and (path.is_dir() or not out.exists()):  # or it is a part of the old export
            raise UserError(f"--out {out}: its {description} would replace {path}: name another file")


@contextlib.contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A folder next to `out` in which an export is written and verified; it is removed at the end.

    Raises:
        UserError: a file cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent)
    except OSError as error:
        raise UserError(f"{out.parent}: cannot be written to ({error.strerror})") from None
    with folder as name:
        try:
            yield Path(name)
        except OSError as error:
            raise UserError(f"{out}: cannot be written ({error.strerror or error})") from None
        except (RuntimeError, SafetensorError) as error:
            reason = _failed_write(error)
            if not reason:
                raise
            raise UserError(f"{out}: cannot be written ({reason})") from None


def _failed_write(error: Exception) -> str:
    """Why the C++ of PyTorch or the Rust of safetensors cannot write a file; empty: the error is another."""
    if isinstance(error, SafetensorError):
        found = re.search(r"I/?O error: (.*?) \(os error \d+\)", str(error), re.I)
        return found[1] if found else ""
    return "PyTorch did not write all of it: the disk may be full" if _TORCH_WRITES.search(str(error)) else ""


def move_into_place(source: Path, place: Path) -> Path:
    """Move a file or folder into place, written through to the disk and with the permissions of new files."""
    umask = os.umask(0)
    os.umask(umask)
    for path in (source, *source.rglob("*")) if source.is_dir() else (source,):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)  # safetensors makes its files private
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    if place.is_dir():
        place.rmdir()  # it is empty: `check_out` refuses others
    source.replace(place)
    return place
