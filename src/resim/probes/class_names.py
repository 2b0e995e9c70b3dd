"""Names of class folders and of parts of a data set: which are parts, and which names mean the same class."""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePath

from resim.errors import UserError

TRAIN_PARTS = ("train", "training")
TEST_PARTS = ("val", "valid", "validation", "test", "testing")
GIVE_CLASSES = "classes are given by class folders (DATA/CLASS/IMAGE) or by a CSV file of path,label"
_PART = re.compile(r"(train|training|val|valid|validation|dev|test|testing)[ _-]?(set|data|images|split|\d{4})?")


def find_folder(root: Path, names: Sequence[str]) -> Path | None:
    """The folder in `root` with the first of these names that is there; letter case does not count."""
    exact = next((root / name for name in names if (root / name).is_dir()), None)
    if exact is not None or not root.is_dir():
        return exact
    there = {entry.name.casefold(): Path(entry) for entry in os.scandir(root) if entry.is_dir()}
    return next((there[name.casefold()] for name in names if name.casefold() in there), None)


def find_parts(root: Path) -> tuple[Path, Path] | None:
    """The folders to learn from and to test on, where a data set has both."""
    train, test = find_folder(root, TRAIN_PARTS), find_folder(root, TEST_PARTS)
    return None if train is None or test is None else (train, test)


def refuse_parts(source: str, classes: Sequence[str]) -> None:
    """Raise a UserError where all class folders have the names of parts of a data set, such as train and val2017."""
    if all(_PART.fullmatch(name.casefold()) for name in classes):
        first = next((name for name in classes if name.casefold().startswith("train")), classes[0])
        other = next(name for name in classes if name != first)
        raise UserError(
            f"{source}: its folders {' and '.join(classes)} are parts of a data set, not classes: name "
            f"{Path(source) / first}, with --test {Path(source) / other}, or add --unlabelled"
        )


def why_no_classes(source: str, below: Sequence[PurePath]) -> str:
    """Why the folders of some images give no classes, and what would.

    Args:
        source: the folder.
        below: the images' paths within it.
    """
    alone = [path for path in below if len(path.parts) == 1]
    if alone and len(alone) < len(below):
        return (
            f"{len(alone)} of {len(below)} images lie in no class folder, such as {alone[0]}: move them out or into one"
        )
    if alone:
        return f"its images lie in no class folders; {GIVE_CLASSES}"
    (folder,) = {path.parts[0] for path in below}
    inner = {path.parts[1] for path in below if len(path.parts) > 2}
    if len(inner) > 1:
        return f"all images lie in {folder}: if its folders are the classes, name {Path(source) / folder}"
    return f"all images lie in one folder, {folder}, and at least two classes are needed; {GIVE_CLASSES}"


def match_classes(source: str, names: Sequence[str], known: Sequence[str], of: str) -> tuple[dict[str, str], str]:
    """The name among those known of each class; letter case and the form of accents do not count where one fits.

    Returns:
        The known name by name, and a note on those that are written differently.

    Raises:
        UserError: a class that is none of those known.
    """
    same: dict[str, list[str]] = {}
    for name in known:
        same.setdefault(_folded(name), []).append(name)
    taken = {name: name for name in names if name in known}
    for name in names:
        fitting = [one for one in same.get(_folded(name), ()) if one not in taken.values()]
        if name not in taken and len(fitting) == 1:
            taken[name] = fitting[0]
    unknown = [name for name in names if name not in taken]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        raise UserError(
            f"{source}: class {unknown[0]!r} is not among the {len(known)} classes of {of}"
            + (f" ({len(unknown)} such classes)" if unknown[1:] else "")
            + (f"; the nearest is {near[0]!r}" if near else "")
            + ": give both sets the same class names, or take its images out"
        )
    other = [f"{name} for {taken[name]}" for name in names if taken[name] != name]
    return taken, f"classes matched by name: {', '.join(other)}" if other else ""


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip().casefold()


def similar_names(classes: Sequence[str]) -> str:
    """Which classes differ only in letter case; empty if there are none."""
    spelled: dict[str, list[str]] = {}
    for name in classes:
        spelled.setdefault(name.casefold(), []).append(name)
    pairs = [" and ".join(names) for names in spelled.values() if len(names) > 1]
    return f"classes whose names differ only in letter case: {', '.join(pairs[:3])}" if pairs else ""
