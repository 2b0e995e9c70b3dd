"""Files of one JSON object a line, such as metrics.jsonl: read in spite of damage, and cut where a run continues."""

from __future__ import annotations

import contextlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resim.errors import UserError, WriteError
from resim.reading import parse_json, read_file
from resim.runs.checkpoints import write_atomically

Record = dict[str, Any]
REMEDY = "--resume of the run repairs the file, or take the line out"


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What `cut_lines` took out of a file."""

    num_later: int
    """Lines of steps that the run repeats."""
    damaged: tuple[int, ...]
    """Numbers, from 1, of lines that are no record of a step."""
    copy: Path
    """The file to which all these lines were added."""


def parse_line(line: bytes) -> Record | None:
    """The object in a line with the number of its step; None: the line is cut off, damaged or of another kind."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = parse_json(line.decode("utf-8"))
    except ValueError:  # bad UTF-8 too
        return None
    if not isinstance(record, dict):
        return None
    step = record.get("step")
    is_step = isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 1 << 62
    return record if is_step else None


def read_records(path: Path) -> list[Record]:
    """The records of a file in order, without a last line that was cut off; none where there is no file.

    Raises:
        UserError: the file cannot be read, or a line in it is damaged.
    """
    lines = _split(path)
    records = []
    for number, line in enumerate(lines, start=1):
        record = parse_line(line)
        if record is not None:
            records.append(record)
        elif number < len(lines) or line.endswith(b"\n"):
            raise UserError(f"{path}: line {number} is damaged, no record of a step: {REMEDY}")
    return records


def cut_lines(path: Path, end: int) -> Cut | None:
    """Take the lines of step `end` and later out of a file, and damaged ones; add them to FILE.cut first.

    The lines before a damaged line and those after it stay.

    Returns:
        What was taken out; None: nothing, and the file is as it was.

    Raises:
        UserError: a file cannot be read or written.
    """
    kept: list[bytes] = []
    cut: list[bytes] = []
    damaged: list[int] = []
    for number, line in enumerate(_split(path), start=1):
        record = parse_line(line)
        if record is None:
            damaged.append(number)
        (kept if record is not None and record["step"] < end else cut).append(line)
    if not cut:
        return None
    copy = path.with_name(f"{path.name}.cut")
    copied = b"".join([*_split(copy), *(line if line.endswith(b"\n") else line + b"\n" for line in cut)])
    write_atomically(copy, lambda file: file.write(copied))
    write_atomically(path, lambda file: file.write(b"".join(kept)))
    return Cut(num_later=len(cut) - len(damaged), damaged=tuple(damaged), copy=copy)


def append(path: Path, content: bytes) -> None:
    """Add bytes to the end of a file: all of them, or none.

    Raises:
        WriteError: the disk is full, or the file cannot be written to.
    """
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab") as file:
            file.write(content)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.truncate(path, size)  # no half of a line stays
        raise WriteError(f"{path}: cannot be written ({error.strerror or error})") from None


def _split(path: Path) -> list[bytes]:
    try:
        return list(io.BytesIO(read_file(path))) if path.exists() else []  # a carriage return alone ends no line
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
