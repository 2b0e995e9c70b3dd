"""A CSV file of images and their classes: which columns, and one class for each image."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from resim.counts import counted
from resim.errors import UserError
from resim.reading import read_file
from resim.views.text import decode_text

_PATHS = ("path", "image", "file", "filename", "file_name", "image_path", "image_name", "filepath", "img", "name")
_LABELS = ("label", "class", "labels", "category", "class_name", "classname", "target", "species")
_DELIMITERS = (",", ";", "\t")


@dataclass(frozen=True, kw_only=True)
class Table:
    """N images and their classes, in the order of the file."""

    paths: list[str]
    labels: list[str]
    note: str
    """What is passed over."""


def read_table(path: str) -> Table:
    """Read rows of path,label: commas, semicolons or tabs between them, with a header or without.

    A header may name the columns in any order and among others. A path is relative to the file's folder. An image that
    is listed twice under one class counts once.

    Raises:
        UserError: a row that cannot be read, a file that is not there, or an image with two classes: which line.
    """
    folder = Path(path).parent
    first_at: dict[str, tuple[int, str]] = {}
    paths, labels, twice = [], [], 0
    columns: tuple[int, int] | None = None
    for line, row in _rows(path):
        where = f"{path}, line {line}"
        if columns is None:
            columns = _columns(row) or (0, 1)
            if _columns(row) is not None:
                continue
        cells = [row[place].strip() if place < len(row) else "" for place in columns]
        if not all(cells):
            raise UserError(f"{where}: expected path,label, not {','.join(row)!r}")
        name, label = cells
        if not _is_text(label):
            raise UserError(f"{where}: a class that is not in UTF-8: save the file as UTF-8 (Excel: CSV UTF-8)")
        image = _image(folder, name)
        if image is None:
            raise UserError(f"{where}: {name}: there is no such file{_hint(folder, cells, is_first=not paths)}")
        real = os.path.realpath(image)
        if real not in first_at:
            first_at[real] = line, label
            paths.append(str(image))
            labels.append(label)
        elif first_at[real][1] == label:
            twice += 1
        else:
            before, other = first_at[real]
            raise UserError(f"{where}: {name} is of class {label!r}, in line {before} of {other!r}: leave one of them")
    if not paths:
        raise UserError(f"{path}: has no rows: path,label is expected in each")
    note = f"{counted(twice, 'row')} left out: the image is listed before, with the same class" if twice else ""
    return Table(paths=paths, labels=labels, note=note)


def _rows(path: str) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and cells of the rows that hold anything."""
    try:
        with io.StringIO(decode_text(read_file(path)).removeprefix("\ufeff"), newline="") as file:
            head = next((line for line in file if line.strip()), "")
            file.seek(0)
            delimiter = max(_DELIMITERS, key=lambda one: (head.count(one) > 0 and one == ",", head.count(one)))
            for row in (reader := csv.reader(file, delimiter=delimiter)):
                if any(cell.strip() for cell in row):
                    yield reader.line_num, row
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except csv.Error as error:
        raise UserError(f"{path}: is no CSV file ({error})") from None


def _is_text(text: str) -> bool:
    """Whether a text has no bytes of another encoding, which are kept as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _columns(row: Sequence[str]) -> tuple[int, int] | None:
    """The columns of paths and classes, if this is a header."""
    cells = [cell.strip().casefold() for cell in row]
    path, label = (next((cells.index(name) for name in names if name in cells), None) for names in (_PATHS, _LABELS))
    return None if path is None or label is None else (path, label)


def _image(folder: Path, name: str) -> Path | None:
    for text in dict.fromkeys((name, name.replace("\\", "/"))):
        path = folder / Path(text).expanduser()
        if path.is_file():
            return path
    return None


def _hint(folder: Path, cells: Sequence[str], *, is_first: bool) -> str:
    """What may be meant where the first row names no file."""
    if is_first and _image(folder, cells[1]) is not None:
        return "; the path comes first, then the label"
    return f"; paths are relative to {folder}, and a header is path,label" if is_first else ""
