"""YOLO's label files: the text file of each image."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from resim.datasets.annotation_values import finite_numbers, with_decimal_point
from resim.datasets.named_files import LocatedFile, spelling
from resim.reading import open_file
from resim.views.folder import EXTENSIONS
from resim.views.text import decode_text
from resim.views.walk import ending_of

_MAX_OPENED = 20  # text files of a folder that are opened at most to recognise labels


def find_label_files(images: Sequence[str]) -> dict[str, LocatedFile]:
    """The label file of each image; without a path for an image that has none, and thus no objects.

    It is searched in `labels` in place of the last `images` of the path, then next to the image, then in `labels` in or
    next to the folder of the image. A name that differs from that of the image (in letter case, in Unicode form, or as
    `a.jpg.txt`) is matched if exactly one file fits, which no other image has.
    """
    located = {image: LocatedFile(_exact_path(image)) for image in images}
    used = {file.path for file in located.values() if file.path is not None}
    folders = _Folders()
    similar = {image: folders.find_similar(image, used) for image, file in located.items() if file.path is None}
    claims = Counter(similar.values())
    for image, path in similar.items():
        if path is not None and claims[path] == 1:
            located[image] = LocatedFile(path, note=f'"{path}" is the label file of "{Path(image).name}"')
    return located


def has_label_content(path: str | Path) -> bool:
    """Whether the first line of a text file is that of a label file: a class and numbers."""
    with open_file(path) as file:
        words, _ = split_line(decode_text(file.read(4096)).split("\n", 1)[0])
    return len(words) >= 5 and finite_numbers(words[1:]) is not None


def split_line(line: str) -> tuple[list[str], bool]:
    """The words of a line of a label file, and whether its numbers have decimal commas, which become points.

    Words are separated by spaces, tabs, commas or semicolons. In `0 0,5 0,25 0,5 0,5` the commas are decimal.
    """
    words = line.strip("\0\ufeff \t").replace(";", " ").split()
    if not any("," in word for word in words):
        return words, False
    points = [with_decimal_point(word) for word in words]
    if len(words) >= 5 and not any("," in word for word in points):
        return points, True
    return line.strip("\0\ufeff \t").replace(";", " ").replace(",", " ").split(), False


def has_labels_next_to_images(folder: Path) -> bool:
    """Whether a folder contains images and their label files, and no XML files."""
    names = {name for _, name in list_files(str(folder))}
    if any(ending_of(name) == ".xml" for name in names):
        return False
    stems = {_stem(name) for name in names if ending_of(name) in EXTENSIONS}
    texts = sorted(name for name in names if ending_of(name) == ".txt" and _stem(name) in stems)
    return any(has_label_content(folder / name) for name in texts[:_MAX_OPENED])


def list_files(folder: str) -> list[tuple[str, str]]:
    """Path and name of each file in a folder, without links that lead to themselves."""
    with os.scandir(folder) as entries:
        return sorted((entry.path, entry.name) for entry in entries if os.path.isfile(entry.path))  # noqa: PTH113


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]  # noqa: PTH122 - strings: Path objects are slow for many images


def _label_folders(image: str) -> list[str]:
    """The folders in which the label file of an image may be."""
    folder = os.path.dirname(image)  # noqa: PTH120
    parts = folder.split(os.sep)  # noqa: PTH206
    names = [part.lower() for part in parts]
    folders = [folder, os.path.join(folder, "labels"), os.path.join(os.path.dirname(folder), "labels")]  # noqa: PTH118, PTH120
    if "images" in names:
        last = len(names) - 1 - names[::-1].index("images")
        folders.insert(0, os.sep.join([*parts[:last], "labels", *parts[last + 1 :]]))  # noqa: PTH118
    return folders


def _exact_path(image: str) -> str | None:
    name = f"{_stem(os.path.basename(image))}.txt"  # noqa: PTH119
    paths = (os.path.join(folder, name) for folder in _label_folders(image))  # noqa: PTH118
    return next((path for path in paths if os.path.isfile(path)), None)  # noqa: PTH113


class _Folders:
    """Listings of folders by the spelling of names, each read once."""

    def __init__(self) -> None:
        self._entries: dict[str, dict[str, list[str]]] = {}

    def find_similar(self, image: str, used: set[str]) -> str | None:
        """The only unused text file that may belong to an image."""
        name = os.path.basename(image)  # noqa: PTH119
        for expected in _label_folders(image):
            folder = self._existing(expected)
            for wanted in (f"{_stem(name)}.txt", f"{name}.txt") if folder is not None else ():
                paths = self._entries_by_spelling(folder).get(spelling(wanted), ())  # type: ignore[arg-type]
                free = [path for path in paths if path not in used and os.path.isfile(path)]  # noqa: PTH113
                if len(free) == 1:
                    return free[0]
        return None

    def _existing(self, folder: str) -> str | None:
        """A folder as it is spelled on disk."""
        if os.path.isdir(folder):  # noqa: PTH112
            return folder
        above, name = os.path.split(folder)
        parent = self._existing(above) if name and above != folder else None
        paths = [] if parent is None else self._entries_by_spelling(parent).get(spelling(name), [])
        return paths[0] if len(paths) == 1 and os.path.isdir(paths[0]) else None  # noqa: PTH112

    def _entries_by_spelling(self, folder: str) -> dict[str, list[str]]:
        if folder not in self._entries:
            listed: dict[str, list[str]] = {}
            with os.scandir(folder) as entries:
                for entry in entries:
                    listed.setdefault(spelling(entry.name), []).append(entry.path)
            self._entries[folder] = listed
        return self._entries[folder]
