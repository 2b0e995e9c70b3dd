"""YOLO's layout: classes and splits as in data.yaml, in Darknet's obj.data, or by the folders alone."""

from __future__ import annotations

import dataclasses
import os
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from resim.datasets.named_files import LocatedFile, locate_files
from resim.datasets.yolo_label_files import has_labels_next_to_images
from resim.datasets.yolo_names import class_names, find_class_file, read_class_file, resolve
from resim.errors import UserError
from resim.reading import read_file
from resim.views.folder import find_images
from resim.views.text import decode_text
from resim.views.walk import UNREAD_FORMATS, PassedOver, ending_of, walk_files

SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}


@dataclass(frozen=True, kw_only=True)
class YoloSet:
    """A YOLO data set before its labels are read.

    Attributes:
        root: folder to which its paths are relative.
        file: that describes it, or the folder.
        names: of the classes, by their number.
        splits: folders, lists or images of each split, as written.
        keypoints: `kpt_shape`: number of keypoints of an object, and of values of each; None without keypoints.
    """

    root: Path
    file: Path
    names: dict[int, str]
    splits: dict[str, list[str]]
    keypoints: tuple[int, int] | None = None


def is_yolo(path: Path) -> bool:
    """Whether a path is a YOLO data set: a YAML or .data file, a folder that has one, or a folder with label files.

    The label files are in `labels` next to `images`, or next to the images themselves.
    """
    if path.is_file():
        return path.suffix.lower() in (".yaml", ".yml", ".data")
    return path.is_dir() and (
        _description(path) is not None or _has_images_and_labels(path) or bool(_mixed_folders(path))
    )


def open_yolo(path: Path, classes: tuple[str, ...] | None = None) -> YoloSet:
    """The data set at a path.

    Args:
        path: for which `is_yolo` is true.
        classes: names in the order of their numbers, in place of those in the files.

    Raises:
        UserError: a file cannot be read or names no classes.
    """
    file = path if path.is_file() else _description(path)
    if file is None:
        data = _from_images_and_labels(path) if _has_images_and_labels(path) else _from_mixed_folders(path)
    elif file.suffix.lower() == ".data":
        data = _from_data(file)
    else:
        data = _from_yaml(file, is_named=path.is_file())
    names = dict(enumerate(classes)) if classes else data.names
    if not names:
        raise UserError(
            f"{data.file}: no class names (names:, classes.txt or obj.names): name the classes with --classes"
        )
    return dataclasses.replace(data, names=names)


@dataclass(frozen=True)
class SplitImages:
    """The images of a split.

    Attributes:
        images: their paths.
        renamed: the names in its lists that differ from the name of a file or match none.
        unread: the images in its folders of a format that is not read.
    """

    images: list[str]
    renamed: list[LocatedFile]
    unread: list[str]


def split_images(data: YoloSet, split: str) -> SplitImages:
    """The images of a split.

    Raises:
        UserError: no such split, or its folder or list does not exist.
    """
    key = next((key for key, words in SPLITS.items() if split in words), split)
    entries = data.splits.get(split) or data.splits.get(key)
    if not entries:
        splits = ", ".join(name for name, entries in data.splits.items() if entries)
        remedy = f"name one of {splits} with --split or --val" if splits else "it has no splits: add train: and val:"
        raise UserError(f"{data.file}: no split {split!r}: {remedy}")
    images: dict[str, None] = {}
    renamed: list[LocatedFile] = []
    unread: dict[str, None] = {}
    for entry in entries:
        path = resolve(data.root, entry)
        if path is None:
            raise UserError(
                f"{data.file}: {split}: {entry!r} does not exist, neither as written nor below {data.root}: "
                "correct the path"
            )
        if path.suffix.lower() == ".txt":
            lines = decode_text(read_file(path)).splitlines()
            names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
            located = locate_files(names, [path.parent, data.root] if path.parent != data.root else [data.root])
            images |= {os.path.normpath(file.path): None for file in located.values() if file.path is not None}
            renamed += [file for file in located.values() if file.path is None or file.note]
        else:
            folder = _image_folder(path)
            images |= dict.fromkeys(os.path.normpath(image) for image in find_images(folder))
            if folder.is_dir():
                walked = walk_files(str(folder), lambda name: ending_of(name) in UNREAD_FORMATS, PassedOver())
                unread |= dict.fromkeys(os.path.normpath(file) for file, _ in walked)
    return SplitImages(list(images), renamed, list(unread))


def has_class_names(folder: Path) -> bool:
    """Whether a folder is a YOLO data set with the names of its classes."""
    if _description(folder) is not None:
        return True
    parts = [] if _has_images_and_labels(folder) else _mixed_folders(folder)
    return bool(_has_images_and_labels(folder) or parts) and find_class_file(folder, *parts) is not None


def _description(folder: Path) -> Path | None:
    """The file in a folder that describes a YOLO data set."""
    for pattern in ("data.yaml", "data.yml", "dataset.yaml", "*.yaml", "*.yml", "obj.data", "*.data"):
        for file in sorted(folder.glob(pattern)):
            if file.suffix == ".data" or _is_description(file):
                return file
    return None


def _is_description(file: Path) -> bool:
    try:
        content = yaml.safe_load(decode_text(read_file(file)))
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        return file.name in ("data.yaml", "dataset.yaml")  # open_yolo reads it again and reports its fault
    if not isinstance(content, dict) or "names" not in content:
        return False
    return any(key in content for key in SPLITS) or _has_images_and_labels(file.parent)


def _has_images_and_labels(folder: Path) -> bool:
    return (folder / "images").is_dir() and (folder / "labels").is_dir() and any((folder / "labels").rglob("*.txt"))


def _from_images_and_labels(folder: Path) -> YoloSet:
    """`images` and `labels`, each with or without a folder for each split, and a file of class names."""
    class_file = find_class_file(folder)
    names = {} if class_file is None else read_class_file(class_file)
    split_of = {word: key for key, words in SPLITS.items() for word in words}
    parts = sorted(entry.name for entry in (folder / "images").iterdir() if entry.is_dir() and entry.name in split_of)
    splits = {split_of[part]: [f"images/{part}"] for part in parts} or {"train": ["images"]}
    return YoloSet(root=folder, file=folder, names=names, splits=splits)


def _mixed_folders(folder: Path) -> list[Path]:
    """The folder if it contains both images and label files, otherwise the folders of its splits that do."""
    if has_labels_next_to_images(folder):
        return [folder]
    names = [word for words in SPLITS.values() for word in words]
    return [folder / name for name in names if (folder / name).is_dir() and has_labels_next_to_images(folder / name)]


def _from_mixed_folders(folder: Path) -> YoloSet:
    """Label files next to the images, as LabelImg and Darknet write them, in one folder or one for each split."""
    parts = _mixed_folders(folder)
    class_file = find_class_file(folder, *parts)
    split_of = {word: key for key, words in SPLITS.items() for word in words}
    splits = {"train": ["."]} if parts == [folder] else {split_of[part.name]: [part.name] for part in parts}
    names = {} if class_file is None else read_class_file(class_file)
    return YoloSet(root=folder, file=folder, names=names, splits=splits)


def _from_data(file: Path) -> YoloSet:
    """Darknet's obj.data, as CVAT and Roboflow write it: `names = data/obj.names`, `train = data/train.txt`."""
    pairs = (line.split("=", 1) for line in decode_text(read_file(file)).splitlines() if "=" in line)
    fields = {key.strip(): value.strip() for key, value in pairs}
    class_file = resolve(file.parent, fields.get("names", "obj.names"))
    names = {} if class_file is None or class_file.is_dir() else read_class_file(class_file)
    entries = {
        "train": fields.get("train"),
        "val": fields.get("valid") or fields.get("val"),
        "test": fields.get("test"),
    }
    # CVAT names lists that it does not write
    splits = {key: [text] for key, text in entries.items() if text and resolve(file.parent, text) is not None}
    return YoloSet(root=file.parent, file=file, names=names, splits=splits)


def _from_yaml(file: Path, *, is_named: bool) -> YoloSet:
    try:
        text = decode_text(read_file(file))
        content: Any = yaml.safe_load(text)
        if isinstance(content, dict) and content.get("names"):  # the class name `no` is not the value False
            content["names"] = yaml.load(text, Loader=yaml.BaseLoader)["names"]
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        raise UserError(f"{file}: not a valid YAML file ({' '.join(str(error).split())}): correct it") from None
    except RecursionError:
        raise UserError(f"{file}: not a valid YAML file (it is nested too deeply): correct it") from None
    except ValueError as error:  # a date of 99 months
        raise UserError(f"{file}: not a valid YAML file ({type(error).__name__}): correct it") from None
    has_splits = isinstance(content, dict) and any(content.get(word) for words in SPLITS.values() for word in words)
    if not has_splits:
        is_whole = isinstance(content, dict) and "names" in content and _has_images_and_labels(file.parent)
        if is_whole and not is_named:  # as supervision writes it
            folders = _from_images_and_labels(file.parent)
            return dataclasses.replace(folders, file=file, names=class_names(file, content))
        hint = f"; or name {file.parent}, to read its images and labels" if is_whole else ""
        raise UserError(f"{file}: not the description of a YOLO data set: it needs names:, and train: or val:{hint}")
    root = file.parent
    written = content.get("path")
    if isinstance(written, str) and written.strip():  # if it does not exist, it is the path of another machine
        root = next((p for p in (root / written, Path(written)) if p.is_dir()), resolve(root, written) or root)
    splits = {}
    for key, words in SPLITS.items():
        value = next((content[word] for word in words if content.get(word)), None)
        entries = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(entry, str) for entry in entries):
            raise UserError(
                f"{file}: {key}: is {reprlib.repr(value)[:200]}, but must be a folder, a .txt list or a list of these"
            )
        splits[key] = entries
    shape = content.get("kpt_shape")
    keypoints = None
    if isinstance(shape, list) and len(shape) == 2 and all(isinstance(number, int) for number in shape):
        keypoints = (shape[0], shape[1])
    return YoloSet(root=root, file=file, names=class_names(file, content), splits=splits, keypoints=keypoints)


def _image_folder(path: Path) -> Path:
    """The folder of a split, or `images` in it if that is next to `labels`."""
    inner = path / "images"
    return inner if path.is_dir() and inner.is_dir() and (path / "labels").is_dir() else path
