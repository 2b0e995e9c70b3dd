"""YOLO's label files: which text file has the objects of which image."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from resim.datasets.locate import Located, spelling
from resim.datasets.repair import finite
from resim.views.folder import EXTENSIONS
from resim.views.text import decode_text
from resim.views.walk import ending_of

_OPENED = 20  # text files of a folder that are opened at most, to see what it is


def find_label_files(images: Sequence[str]) -> dict[str, Located]:
    """The label file of each image; no path where it has none, which then has no objects.

    It lies in `labels` in place of the path's last `images`, else beside the image, else in a folder `labels` in or
    beside that of the image. A name that is not quite that of the image (other letters, another form of Unicode,
    `a.jpg.txt`) is taken where one file alone fits, which is no other image's.
    """
    found = {image: Located(_direct(image)) for image in images}
    used = {place.path for place in found.values() if place.path is not None}
    folders = _Folders()
    near = {image: folders.near(image, used) for image, place in found.items() if place.path is None}
    claims = Counter(near.values())
    for image, path in near.items():
        if path is not None and claims[path] == 1:
            found[image] = Located(path, note=f'"{path}" has the objects of "{Path(image).name}"')
    return found


def begins_as_labels(path: str | Path) -> bool:
    """Whether a text file begins as a label file does: a class and numbers."""
    with open(path, "rb") as file:  # noqa: PTH123
        words = decode_text(file.read(4096)).split("\n", 1)[0].replace(",", " ").split()
    return len(words) >= 5 and finite(words[1:]) is not None


def has_labels_beside(folder: Path) -> bool:
    """Whether label files lie beside the images of a folder, which has no XML files."""
    names = {name for _, name in files_in(str(folder))}
    if any(ending_of(name) == ".xml" for name in names):
        return False
    stems = {_stem(name) for name in names if ending_of(name) in EXTENSIONS}
    texts = sorted(name for name in names if ending_of(name) == ".txt" and _stem(name) in stems)
    return any(begins_as_labels(folder / name) for name in texts[:_OPENED])


def files_in(folder: str) -> list[tuple[str, str]]:
    """Path and name of each file in a folder; a link to itself is none."""
    with os.scandir(folder) as entries:
        return sorted((entry.path, entry.name) for entry in entries if os.path.isfile(entry.path))  # noqa: PTH113


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]  # noqa: PTH122 - strings: a hundred thousand Path objects are slow


def _places(image: str) -> list[str]:
    """The folders in which the label file of an image may lie."""
    folder = os.path.dirname(image)  # noqa: PTH120
    parts = folder.split(os.sep)  # noqa: PTH206
    places = [folder, os.path.join(folder, "labels"), os.path.join(os.path.dirname(folder), "labels")]  # noqa: PTH118, PTH120
    if "images" in parts:
        at = len(parts) - 1 - parts[::-1].index("images")
        places.insert(0, os.sep.join([*parts[:at], "labels", *parts[at + 1 :]]))  # noqa: PTH118
    return places


def _direct(image: str) -> str | None:
    name = f"{_stem(os.path.basename(image))}.txt"  # noqa: PTH119
    paths = (os.path.join(place, name) for place in _places(image))  # noqa: PTH118
    return next((path for path in paths if os.path.isfile(path)), None)  # noqa: PTH113


class _Folders:
    """Listings of folders by the spelling of names, each made once."""

    def __init__(self) -> None:
        self._entries: dict[str, dict[str, list[str]]] = {}

    def near(self, image: str, used: set[str]) -> str | None:
        """The one text file that may be meant for an image, of those not used."""
        name = os.path.basename(image)  # noqa: PTH119
        for place in _places(image):
            folder = self._there(place)
            for wanted in (f"{_stem(name)}.txt", f"{name}.txt") if folder is not None else ():
                fits = self._in(folder).get(spelling(wanted), ())  # type: ignore[arg-type]
                free = [path for path in fits if path not in used and os.path.isfile(path)]  # noqa: PTH113
                if len(free) == 1:
                    return free[0]
        return None

    def _there(self, folder: str) -> str | None:
        """A folder as it is spelled on the disk."""
        if os.path.isdir(folder):  # noqa: PTH112
            return folder
        above, name = os.path.split(folder)
        parent = self._there(above) if name and above != folder else None
        fits = [] if parent is None else self._in(parent).get(spelling(name), [])
        return fits[0] if len(fits) == 1 and os.path.isdir(fits[0]) else None  # noqa: PTH112

    def _in(self, folder: str) -> dict[str, list[str]]:
        if folder not in self._entries:
            listed: dict[str, list[str]] = {}
            with os.scandir(folder) as entries:
                for entry in entries:
                    listed.setdefault(spelling(entry.name), []).append(entry.path)
            self._entries[folder] = listed
        return self._entries[folder]
