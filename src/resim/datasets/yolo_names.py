"""The names of the classes of YOLO data sets, in files and in data.yaml, and the paths that such files state."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from resim.errors import UserError
from resim.reading import read_file
from resim.views.text import decode_text

_CLASS_FILES = (
    "classes.txt",
    "obj.names",
    "names.txt",
    "predefined_classes.txt",
    "labels/classes.txt",
    "data/obj.names",
)
_CLASS_FILES += ("_darknet.labels",)  # Roboflow's


def find_class_file(*folders: Path) -> Path | None:
    """The first file of class names in the folders."""
    return next((folder / name for folder in folders for name in _CLASS_FILES if (folder / name).is_file()), None)


def read_class_file(path: Path) -> dict[int, str]:
    """The names of a file with one a line, by their number; a blank line is a number without a name."""
    lines = [line.strip() for line in decode_text(read_file(path)).splitlines()]
    return {number: name for number, name in enumerate(lines) if name}


def class_names(file: Path, content: dict[str, Any]) -> dict[int, str]:
    """The names of the classes in the content of a YAML file, by their number; empty if it names none.

    Raises:
        UserError: a number or a name cannot be used, or `nc` contradicts the names.
    """
    names, count = content.get("names"), content.get("nc")
    if isinstance(names, list):
        classes = {number: _class_name(file, name) for number, name in enumerate(names)}
    elif isinstance(names, dict):
        try:
            numbered = sorted((int(number), name) for number, name in names.items())
        except (TypeError, ValueError, OverflowError):
            raise UserError(f"{file}: names: the number of each class must be an integer, such as 0: cat") from None
        classes = {number: _class_name(file, name) for number, name in numbered}
    elif isinstance(names, str) and (path := resolve(file.parent, names)) is not None and path.is_file():
        classes = read_class_file(path)
    elif names is None and isinstance(count, int) and count > 0:
        classes = {number: str(number) for number in range(count)}
    else:
        return {}
    if isinstance(count, int) and count != len(classes):
        raise UserError(f"{file}: nc: is {count}, but names: has {len(classes)} classes: correct one of them")
    return classes


def _class_name(file: Path, name: object) -> str:
    if isinstance(name, (list, dict, tuple, set)):  # as text, nested references would fill the memory
        raise UserError(f"{file}: names: each name must be a text: correct it")
    return str(name)


def resolve(root: Path, text: str) -> Path | None:
    """A folder or file as written, or below the root without its first folders, which may be of another machine."""
    exists = os.path.exists  # False for a name of thousands of letters, where Path.exists raises
    written = root / text
    if exists(written) and not text.startswith(".."):
        return written
    parts = [part for part in re.split(r"[/\\]", text) if part not in ("", ".", "..")]
    below = (root.joinpath(*parts[start:]) for start in range(len(parts)))
    return next((path for path in below if exists(path)), written if exists(written) else None)
