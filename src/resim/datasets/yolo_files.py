"""Where a YOLO data set's images and labels are: data.yaml, Darknet's obj.data, or folders alone."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from resim.datasets.locate import Located, locate_files
from resim.datasets.yolo_labels import has_labels_beside
from resim.errors import UserError
from resim.views.folder import find_images
from resim.views.text import decode_text

SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}
_NAMES = ("classes.txt", "obj.names", "names.txt", "predefined_classes.txt", "labels/classes.txt", "data/obj.names")
_NAMES += ("_darknet.labels",)  # Roboflow's


@dataclass(frozen=True, kw_only=True)
class YoloSet:
    """A YOLO data set, nothing of its labels read yet.

    Attributes:
        root: folder that paths in it are relative to.
        file: that describes it, or the folder.
        names: classes by their number.
        splits: what each split names: folders, lists or images, as they are written.
        keypoints: numbers of each keypoint of an object, and how many keypoints (`kpt_shape`); None: no keypoints.
    """

    root: Path
    file: Path
    names: dict[int, str]
    splits: dict[str, list[str]]
    keypoints: tuple[int, int] | None = None


def is_yolo(path: Path) -> bool:
    """Whether a path is a YOLO data set: its YAML or .data file, or a folder that has one, or has labels.

    These lie in `labels` beside `images`, or beside the images themselves.
    """
    if path.is_file():
        return path.suffix.lower() in (".yaml", ".yml", ".data")
    return path.is_dir() and (_description(path) is not None or _is_plain(path) or bool(_flat_parts(path)))


def open_yolo(path: Path, classes: tuple[str, ...] | None = None) -> YoloSet:
    """The data set at a path.

    Args:
        path: what `is_yolo` knows.
        classes: names in the order of their numbers, in place of those of the files.

    Raises:
        UserError: a file that cannot be read or says no classes.
    """
    file = path if path.is_file() else _description(path)
    if file is None:
        found = _plain(path) if _is_plain(path) else _flat(path)
    elif file.suffix.lower() == ".data":
        found = _from_data(file)
    else:
        found = _from_yaml(file)
    names = dict(enumerate(classes)) if classes else found.names
    if not names:
        raise UserError(f"{found.file}: no names of classes (names:, classes.txt or obj.names): give them by --classes")
    return YoloSet(root=found.root, file=found.file, names=names, splits=found.splits, keypoints=found.keypoints)


def split_images(data: YoloSet, split: str) -> tuple[list[str], list[Located]]:
    """The images of a split, and the names in its lists that are not quite those of files, or of no file.

    Raises:
        UserError: no such split, or a folder or list that is not there.
    """
    key = next((key for key, words in SPLITS.items() if split in words), split)
    named = data.splits.get(split) or data.splits.get(key)
    if not named:
        there = ", ".join(name for name, places in data.splits.items() if places) or "none"
        raise UserError(f"{data.file}: no split {split!r}; there is {there}: name one with --split or --val")
    images: dict[str, None] = {}
    odd: list[Located] = []
    for text in named:
        place = _place(data.root, text)
        if place is None:
            raise UserError(f"{data.file}: {split}: {text!r} is not there, neither as written nor below {data.root}")
        if place.suffix.lower() == ".txt":
            lines = decode_text(place.read_bytes()).splitlines()
            wanted = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
            located = locate_files(wanted, [place.parent, data.root] if place.parent != data.root else [data.root])
            images |= {os.path.normpath(one.path): None for one in located.values() if one.path is not None}
            odd += [one for one in located.values() if one.path is None or one.note]
        else:
            images |= dict.fromkeys(os.path.normpath(path) for path in find_images(_pictures(place)))
    return list(images), odd


def names_its_classes(folder: Path) -> bool:
    """Whether a folder is a YOLO data set with the names of its classes."""
    if _description(folder) is not None:
        return True
    parts = [] if _is_plain(folder) else _flat_parts(folder)
    return bool(_is_plain(folder) or parts) and _names_file(folder, *parts) is not None


def _description(folder: Path) -> Path | None:
    """The file in a folder that describes a YOLO data set."""
    for pattern in ("data.yaml", "data.yml", "dataset.yaml", "*.yaml", "*.yml", "obj.data", "*.data"):
        for file in sorted(folder.glob(pattern)):
            if file.suffix == ".data" or _is_description(file):
                return file
    return None


def _is_description(file: Path) -> bool:
    try:
        content = yaml.safe_load(decode_text(file.read_bytes()))
    except (OSError, yaml.YAMLError):
        return file.name in ("data.yaml", "dataset.yaml")  # to be read again, and its fault said
    return isinstance(content, dict) and "names" in content and any(key in content for key in SPLITS)


def _is_plain(folder: Path) -> bool:
    return (folder / "images").is_dir() and (folder / "labels").is_dir() and any((folder / "labels").rglob("*.txt"))


def _plain(folder: Path) -> YoloSet:
    """`images` and `labels`, each perhaps with a folder a split; the classes are listed in a file of names."""
    listing = _names_file(folder)
    names = {} if listing is None else _name_list(listing)
    words = {word: key for key, many in SPLITS.items() for word in many}
    parts = sorted(entry.name for entry in (folder / "images").iterdir() if entry.is_dir() and entry.name in words)
    splits = {words[part]: [f"images/{part}"] for part in parts} or {"train": ["images"]}
    return YoloSet(root=folder, file=folder, names=names, splits=splits)


def _flat_parts(folder: Path) -> list[Path]:
    """The folder, if label files lie beside the images in it, or those of its splits that are such folders."""
    if has_labels_beside(folder):
        return [folder]
    words = [word for many in SPLITS.values() for word in many]
    return [folder / word for word in words if (folder / word).is_dir() and has_labels_beside(folder / word)]


def _flat(folder: Path) -> YoloSet:
    """Label files beside the images, as LabelImg and Darknet keep them, in a folder or in one a split."""
    parts = _flat_parts(folder)
    listing = _names_file(folder, *parts)
    words = {word: key for key, many in SPLITS.items() for word in many}
    splits = {"train": ["."]} if parts == [folder] else {words[part.name]: [part.name] for part in parts}
    names = {} if listing is None else _name_list(listing)
    return YoloSet(root=folder, file=folder, names=names, splits=splits)


def _names_file(*folders: Path) -> Path | None:
    """The file of the names of the classes in one of some folders."""
    return next((folder / name for folder in folders for name in _NAMES if (folder / name).is_file()), None)


def _name_list(path: Path) -> dict[int, str]:
    lines = [line.strip() for line in decode_text(path.read_bytes()).splitlines()]
    return {number: name for number, name in enumerate(lines) if name}


def _from_data(file: Path) -> YoloSet:
    """Darknet's obj.data, as CVAT and Roboflow write it: `names = data/obj.names`, `train = data/train.txt`."""
    pairs = (line.split("=", 1) for line in decode_text(file.read_bytes()).splitlines() if "=" in line)
    fields = {key.strip(): value.strip() for key, value in pairs}
    listing = _place(file.parent, fields.get("names", "obj.names"))
    names = {} if listing is None or listing.is_dir() else _name_list(listing)
    wanted = {"train": fields.get("train"), "val": fields.get("valid") or fields.get("val"), "test": fields.get("test")}
    # CVAT names lists that it does not write
    splits = {key: [text] for key, text in wanted.items() if text and _place(file.parent, text) is not None}
    return YoloSet(root=file.parent, file=file, names=names, splits=splits)


def _from_yaml(file: Path) -> YoloSet:
    try:
        text = decode_text(file.read_bytes())
        content: Any = yaml.safe_load(text)
        if isinstance(content, dict) and content.get("names"):  # a class called `no` is no False
            content["names"] = yaml.load(text, Loader=yaml.BaseLoader)["names"]
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        raise UserError(f"{file}: not a YAML file ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict) or not any(content.get(word) for words in SPLITS.values() for word in words):
        raise UserError(f"{file}: describes no YOLO data set: it needs names:, and train: or val:")
    root = file.parent
    written = content.get("path")
    if isinstance(written, str) and written.strip():  # where it is not there, it is another machine's
        root = next((p for p in (root / written, Path(written)) if p.is_dir()), _place(root, written) or root)
    splits = {}
    for key, words in SPLITS.items():
        value = next((content[word] for word in words if content.get(word)), None)
        entries = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(entry, str) for entry in entries):
            raise UserError(f"{file}: {key}: must be a folder, a .txt list or a list of these, not {value!r}")
        splits[key] = entries
    shape = content.get("kpt_shape")
    keypoints = None
    if isinstance(shape, list) and len(shape) == 2 and all(isinstance(number, int) for number in shape):
        keypoints = (shape[0], shape[1])
    return YoloSet(root=root, file=file, names=_names(file, content), splits=splits, keypoints=keypoints)


def _names(file: Path, content: dict[str, Any]) -> dict[int, str]:
    names, count = content.get("names"), content.get("nc")
    if isinstance(names, list):
        found = {number: str(name) for number, name in enumerate(names)}
    elif isinstance(names, dict):
        try:
            found = {int(number): str(name) for number, name in sorted(names.items(), key=lambda item: int(item[0]))}
        except (TypeError, ValueError):
            raise UserError(f"{file}: names: the numbers of classes must be whole numbers") from None
    elif isinstance(names, str) and (listing := _place(file.parent, names)) is not None and listing.is_file():
        found = _name_list(listing)
    elif names is None and isinstance(count, int) and count > 0:
        found = {number: str(number) for number in range(count)}
    else:
        return {}
    if isinstance(count, int) and count != len(found):
        raise UserError(f"{file}: nc: is {count}, but names: has {len(found)} classes: correct one of them")
    return found


def _place(root: Path, text: str) -> Path | None:
    """A folder or file as it is written, or below the root without its first folders, which are another machine's."""
    written = root / text
    if written.exists() and not text.startswith(".."):
        return written
    parts = [part for part in re.split(r"[/\\]", text) if part not in ("", ".", "..")]
    below = (root.joinpath(*parts[start:]) for start in range(len(parts)))
    return next((path for path in below if path.exists()), written if written.exists() else None)


def _pictures(place: Path) -> Path:
    """A split's folder; where it has `images` beside `labels`, the first of these."""
    inner = place / "images"
    return inner if place.is_dir() and inner.is_dir() and (place / "labels").is_dir() else place
