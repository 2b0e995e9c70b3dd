"""VOC's layout: the folders of the years, their lists of images, and the XML file and image of each id."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path

from resim.datasets.named_files import FileIndex, spelling
from resim.errors import UserError
from resim.reading import read_file
from resim.views.folder import EXTENSIONS
from resim.views.text import decode_text
from resim.views.walk import UNREAD_FORMATS, PassedOver, ending_of, walk_files

_FLAG = re.compile(r"(.*\S)[\s,]+[+-]?[01]")  # in the lists of a class: whether an image contains it


class VocFolder:
    """The XML files and images of one year, or of a folder without lists.

    Args:
        root: folder of both.
        annotations: folder of the XML files.
        images: folder in which images are searched.
    """

    def __init__(self, root: Path, annotations: Path, images: Path) -> None:
        self.root, self.annotations, self.images = root, annotations, images

    @functools.cached_property
    def xml_files(self) -> dict[str, Path]:
        """The XML files by id, that is, by their path without the extension."""
        if not self.annotations.is_dir():
            return {}
        walked = walk_files(str(self.annotations), lambda name: name.lower().endswith(".xml"), PassedOver())
        paths = sorted(Path(path) for path, _ in walked)
        return {path.relative_to(self.annotations).as_posix()[: -len(".xml")]: path for path in paths}

    @functools.cached_property
    def _id_by_spelling(self) -> dict[str, str]:
        return {spelling(image_id): image_id for image_id in self.xml_files}

    @functools.cached_property
    def _index(self) -> FileIndex:
        return FileIndex([self.images] if self.images.is_dir() else [])

    def has_xml(self, image_id: str) -> bool:
        """Whether there is an XML file of this id, in any spelling."""
        return image_id in self.xml_files or spelling(image_id) in self._id_by_spelling

    def xml_file(self, image_id: str) -> Path | None:
        """The XML file of an id, in any spelling."""
        return self.xml_files.get(image_id) or self.xml_files.get(self._id_by_spelling.get(spelling(image_id), ""))

    def image_file(self, image_id: str, filename: str) -> tuple[Path | None, str]:
        """The image of an id, and a note if its name is unusual; or None, and why there is no image.

        Args:
            image_id: as in the list.
            filename: by the XML file; may be empty.
        """
        usual = self.images / f"{image_id}.jpg"
        if usual.is_file() and ".." not in usual.parts:
            # not Path.is_file, which raises for a name of thousands of letters
            is_other_file = filename not in ("", usual.name) and os.path.isfile(self.images / Path(filename).name)  # noqa: PTH113
            differs = is_other_file and Path(filename).stem != usual.stem
            return usual, f'<filename> is "{filename}", but "{usual.name}" is used' if differs else ""
        paths, _ = self._index.match(f"{image_id}.jpg")
        if len(paths) > 1 and filename:
            paths = [path for path in paths if Path(path).name == Path(filename).name] or paths
        if len(paths) == 1:
            path = Path(paths[0])
            is_usual = path.stem == Path(image_id).name
            return path, "" if is_usual else f'"{image_id}" is {self._index.quoted_path(paths[0])}'
        named, _ = self._index.match(filename) if filename else ([], False)
        named = [path for path in named if not self.has_xml(Path(path).stem)]  # not the image of another XML file
        if len(named) == 1:
            return Path(named[0]), f'"{image_id}" is {self._index.quoted_path(named[0])} by its <filename>'
        if paths:
            return None, f"{len(paths)} files fit, {paths[0]} and {paths[1]}"
        similar = self._index.most_similar(f"{image_id}.jpg")
        return None, f"{usual}" + (f'; the most similar name is "{similar}"' if similar else "")


def find_years(root: Path) -> dict[str, Path]:
    """The folders of years at or below a root, by their number."""
    if (root / "ImageSets" / "Main").is_dir():
        return {root.name.removeprefix("VOC"): root}
    devkit = root / "VOCdevkit" if (root / "VOCdevkit").is_dir() else root
    folders = sorted(folder for folder in devkit.glob("VOC*") if (folder / "ImageSets" / "Main").is_dir())
    return {folder.name.removeprefix("VOC"): folder for folder in folders}


def find_xml_folder(root: Path) -> VocFolder | None:
    """A folder without lists, with XML files in it or in `Annotations` or the like; None if there are none."""
    for name in ("", "Annotations", "annotations", "labels", "xmls", "xml"):
        folder = root / name
        # CVAT writes an annotations.xml of its own format
        if folder.is_dir() and any(path.name != "annotations.xml" for path in folder.glob("*.xml")):
            images = root / "JPEGImages"
            return VocFolder(root, folder, images if images.is_dir() else root)
    return None


def list_images(root: Path, part: str, split: str) -> tuple[VocFolder, list[str]]:
    """The folder and the image ids of one part of a split.

    Args:
        root: of the data set.
        part: a list, with its year if there are several: `"2007 trainval"`; without lists, a folder.
        split: the whole split, for messages.

    Raises:
        UserError: not a VOC layout, or no such year or list, or the list is empty.
    """
    years = find_years(root)
    if not years:
        without_lists = find_xml_folder(root / part) or (find_xml_folder(root) if part == "trainval" else None)
        if without_lists is not None:
            return without_lists, list(without_lists.xml_files)
        raise UserError(
            f"{root}: not a VOC data set: name the folder that contains ImageSets/Main, or one around VOC2007, ..."
        )
    year, _, name = part.rpartition(" ")
    if not year and len(years) > 1:
        raise UserError(f"split {split!r}: {root} has several years: write {min(years)} {name or 'trainval'}")
    if year and year.strip() not in years:
        raise UserError(f"split {split!r}: {root} has no year {year}: name one of {', '.join(years)}")
    year_root = years[year.strip()] if year else next(iter(years.values()))
    path = year_root / "ImageSets" / "Main" / f"{name}.txt"
    if not path.is_file():
        lists = ", ".join(sorted(file.stem for file in path.parent.glob("*.txt") if "_" not in file.stem))
        remedy = f"name one of {lists} with --split" if lists else "its folder has no lists"
        raise UserError(f"{path}: no such list: {remedy}")
    folder = VocFolder(year_root, year_root / "Annotations", year_root / "JPEGImages")
    try:
        image_ids = read_ids(path, folder.has_xml)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if not image_ids:
        raise UserError(f"{path}: empty split: write the id of an image in each line")
    return folder, image_ids


def read_ids(path: Path, is_known: Callable[[str], bool]) -> list[str]:
    """The image ids of a list, one a line.

    A line is an id as it stands, if that is known; otherwise without a flag (-1, 0 or 1, in the lists of a class),
    without folders before it and without the extension of an image or of XML. Blank lines are ignored.

    Args:
        path: of the list.
        is_known: whether there is an image of an id.

    Raises:
        OSError: the list cannot be read.
    """

    def is_right(text: str) -> bool:
        lines = [line for line in text.splitlines() if line.strip() and not line.isascii()]
        return any(is_known(_parse_id(line, is_known)) for line in lines)

    lines = decode_text(read_file(path), is_right).splitlines()
    return [_parse_id(line, is_known) for line in lines if line.strip()]


def _parse_id(line: str, is_known: Callable[[str], bool]) -> str:
    text = line.strip("\0\ufeff \t")
    flagged = _FLAG.fullmatch(text)
    candidates = []
    for name in (text, *((flagged[1],) if flagged else ())):
        last = re.split(r"[/\\]", name)[-1]
        candidates += [name, _without_extension(name), last, _without_extension(last)]
    known = next((candidate for candidate in candidates if is_known(candidate)), None)
    return known if known is not None else candidates[-1]


def _without_extension(name: str) -> str:
    is_file = ending_of(name) in EXTENSIONS | UNREAD_FORMATS | {".xml"}
    return name.rpartition(".")[0] if is_file else name
