"""Folders and files of labelling tools: what they are, and the command to type."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

from resim.datasets.coco_file import EXPORT, other_format

_TRAIN, _VAL = ("train", "training"), ("valid", "val", "validation", "test")
_LABEL_FOLDERS = {"label_2": "KITTI", "labelTxt": "DOTA"}
_SNIFFED = 64  # JSON files of a folder that are opened at most


def recognise_folder(folder: Path) -> str:
    """What a folder without a split that can be read is, and the command to type; empty where nothing is recognised."""
    makers = {"_annotations.coco.json": "Roboflow", "labels.json": "FiftyOne", "annotations.json": "a labelling tool"}
    for name, maker in makers.items():
        parts = _parts(folder, name)
        if parts:
            there = ", ".join(f"{part}/{name}" for part in parts)
            return f"this is an export of {maker} in COCO's form, {there}: {_by_split(folder, parts)}"
    xml_parts = [
        part
        for part in (*_TRAIN, *_VAL)
        if any((folder / part).glob("*.xml")) or any((folder / part / "Annotations").glob("*.xml"))
    ]
    if xml_parts:
        command = f"{_by_split(folder, xml_parts)} --classes NAME NAME ..."
        return f"this is an export of Roboflow or LabelImg in VOC's form, {', '.join(xml_parts)}: {command}"
    if (folder / "metadata.json").is_file() and (folder / "samples.json").is_file():
        return (
            "this is FiftyOne's own form: export it by dataset.export(export_dir=DIR, "
            "dataset_type=fo.types.COCODetectionDataset), then type resim detect train DIR"
        )
    if (folder / "annotations.xml").is_file():
        return recognise_file(folder / "annotations.xml")
    for name, maker in _LABEL_FOLDERS.items():
        if (folder / name).is_dir():
            return f"this is {maker}'s own form ({name}): {EXPORT}"
    if is_supervisely(folder):
        return f"this is Supervisely's own form (ann and img): {EXPORT}"
    below = sorted(folder.glob("*.json"))[:_SNIFFED]
    kinds = [_recognise_json(file) for file in below]
    if kinds and all(kinds) and len(set(kinds)) == 1:
        return f"each JSON file in it is {kinds[0]}"
    names = {file.name for pattern in ("annotations/*.json", "*.json") for file in folder.glob(pattern)}
    splits = sorted(name[len("instances_") : -len(".json")] for name in names if name.startswith("instances_"))
    if splits:
        return f"there is {', '.join(f'instances_{split}.json' for split in splits)}: {_by_split(folder, splits)}"
    if names:
        shown = ", ".join(sorted(names)[:8]) + (f", ... {len(names)} in all" if len(names) > 8 else "")
        usual = [stem for stem in (name.removesuffix(".json") for name in sorted(names)) if stem in (*_TRAIN, *_VAL)]
        command = _by_split(folder, usual) if usual and usual[0] != "test" else "name a split, or one of them"
        return f"there is {shown}: {command}"
    parts = [folder / part for part in (*_TRAIN, *_VAL) if (folder / part).is_dir()]
    files = [file for place in (folder, *parts) for file in sorted(place.iterdir())]
    return next(filter(None, map(recognise_file, files)), "")


def is_supervisely(folder: Path) -> bool:
    """Whether a folder is a project or a data set of Supervisely's: JSON files in `ann` beside images in `img`."""
    inside = [folder, *(entry for entry in folder.iterdir() if entry.is_dir())]
    return any((part / "img").is_dir() and any((part / "ann").glob("*.json")) for part in inside)


def recognise_file(file: Path) -> str:
    """What a file without JSON or YAML is, and what to do with it; empty where it is not recognised."""
    ending = file.suffix.lower()
    if ending in (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"):
        return f"{file.name} is an archive: unpack it, then type resim detect train DIR"
    if file.name.endswith(".createml.json"):
        return f"{file.name} is a CreateML file: {EXPORT}"
    if ending == ".csv":
        return f"{file.name} is a table, which is not read: {EXPORT}"
    if ending in (".ndjson", ".jsonl"):
        return f"{file.name} is a JSON object a line, which is not read: {EXPORT}"
    if ending in (".record", ".tfrecord", ".parquet"):
        return f"{file.name} is a file of TFRecord or Parquet, which is not read: {EXPORT}"
    return _cvat_xml(file) if ending == ".xml" else ""


def _recognise_json(file: Path) -> str:
    """What a JSON file that is no COCO file is, and the remedy; empty where it is not recognised."""
    try:
        return other_format(json.loads(file.read_bytes()), known_only=True)
    except (OSError, ValueError, RecursionError):
        return ""


def _parts(folder: Path, name: str) -> list[str]:
    """The folders of splits that hold a file of this name, those to train on first."""
    return [part for part in (*_TRAIN, *_VAL) if (folder / part / name).is_file()]


def _by_split(folder: Path, parts: list[str]) -> str:
    train, *others = sorted(parts, key=lambda part: not part.startswith("train"))
    return f"type resim detect train {folder} --split {train}" + (f" --val {others[0]}" if others else "")


def _cvat_xml(file: Path) -> str:
    try:
        _, root = next(ElementTree.iterparse(file, events=("start",)))
    except (OSError, ElementTree.ParseError, StopIteration):
        return ""
    if root.tag != "annotations":
        return ""
    return f"{file.name} is CVAT's own form: export 'COCO 1.0' there, then type resim detect train DIR"
