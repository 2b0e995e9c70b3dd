"""Recognise the exports of labelling tools: the format of a folder or file, and the command to type."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from resim.datasets.foreign_json import EXPORT, foreign_format
from resim.json_text import parse_json

_TRAIN, _VAL = ("train", "training"), ("valid", "val", "validation", "test")
_LABEL_FOLDERS = {"label_2": "KITTI", "labelTxt": "DOTA"}
_MAX_OPENED = 64  # JSON files of a folder that are opened at most


def recognise_folder(folder: Path) -> str:
    """The format of a folder that is not a data set by itself, and the command to type; empty if it is unknown."""
    tools = {"_annotations.coco.json": "Roboflow", "labels.json": "FiftyOne", "annotations.json": "a labelling tool"}
    for name, tool in tools.items():
        parts = _parts(folder, name)
        if parts:
            files = ", ".join(f"{part}/{name}" for part in parts)
            return f"this is an export of {tool} in COCO format, {files}: {_train_command(folder, parts)}"
    xml_parts = [
        part
        for part in (*_TRAIN, *_VAL)
        if any((folder / part).glob("*.xml")) or any((folder / part / "Annotations").glob("*.xml"))
    ]
    if xml_parts:
        command = f"{_train_command(folder, xml_parts)} --classes NAME NAME ..."
        return f"this is an export of Roboflow or LabelImg in VOC format, {', '.join(xml_parts)}: {command}"
    if (folder / "metadata.json").is_file() and (folder / "samples.json").is_file():
        return (
            "this is a FiftyOne data set: export it with dataset.export(export_dir=DIR, "
            "dataset_type=fo.types.COCODetectionDataset), then type resim detect train DIR"
        )
    if (folder / "annotations.xml").is_file():
        return recognise_file(folder / "annotations.xml")
    for name, tool in _LABEL_FOLDERS.items():
        if (folder / name).is_dir():
            return f"this is in {tool} format (folder {name}): {EXPORT}"
    if is_supervisely(folder):
        return f"this is in Supervisely format (folders ann and img): {EXPORT}"
    formats = [_recognise_json(file) for file in sorted(folder.glob("*.json"))[:_MAX_OPENED]]
    if formats and all(formats) and len(set(formats)) == 1:
        return f"each of its JSON files is {formats[0]}"
    names = {file.name for pattern in ("annotations/*.json", "*.json") for file in folder.glob(pattern)}
    splits = sorted(name[len("instances_") : -len(".json")] for name in names if name.startswith("instances_"))
    if splits:
        files = ", ".join(f"instances_{split}.json" for split in splits)
        return f"choose one of {files}: {_train_command(folder, splits)}"
    if names:
        shown = ", ".join(sorted(names)[:8]) + (f", ... {len(names)} in all" if len(names) > 8 else "")
        usual = [stem for stem in (name.removesuffix(".json") for name in sorted(names)) if stem in (*_TRAIN, *_VAL)]
        command = (
            _train_command(folder, usual)
            if usual and usual[0] != "test"
            else "name the split with --split, or the file itself"
        )
        return f"choose one of {shown}: {command}"
    parts = [folder / part for part in (*_TRAIN, *_VAL) if (folder / part).is_dir()]
    files = [file for part in (folder, *parts) for file in sorted(part.iterdir())]
    return next(filter(None, map(recognise_file, files)), "")


def is_supervisely(folder: Path) -> bool:
    """Whether a folder is a project or a data set of Supervisely: JSON files in `ann` next to images in `img`."""
    folders = [folder, *(entry for entry in folder.iterdir() if entry.is_dir())]
    return any((part / "img").is_dir() and any((part / "ann").glob("*.json")) for part in folders)


def recognise_file(file: Path) -> str:
    """The format of a file that is neither JSON nor YAML, and the remedy; empty if it is unknown."""
    ending = file.suffix.lower()
    if ending in (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"):
        return f"{file.name} is an archive: unpack it, then type resim detect train DIR"
    if file.name.endswith(".createml.json"):
        return f"{file.name} is a CreateML file: {EXPORT}"
    if ending == ".csv":
        return f"{file.name} is a table, which is not supported: {EXPORT}"
    if ending in (".ndjson", ".jsonl"):
        return f"{file.name} has a JSON object in each line, which is not supported: {EXPORT}"
    if ending in (".record", ".tfrecord", ".parquet"):
        return f"{file.name} is a TFRecord or Parquet file, which is not supported: {EXPORT}"
    return _cvat_xml(file) if ending == ".xml" else ""


def _recognise_json(file: Path) -> str:
    """The format of a JSON file that is not COCO's, and the remedy; empty if it is unknown."""
    try:
        return foreign_format(parse_json(file.read_bytes()), known_only=True)
    except (OSError, ValueError, RecursionError):
        return ""


def _parts(folder: Path, name: str) -> list[str]:
    """The folders of splits that contain a file of this name, those to train on first."""
    return [part for part in (*_TRAIN, *_VAL) if (folder / part / name).is_file()]


def _train_command(folder: Path, parts: list[str]) -> str:
    train, *others = sorted(parts, key=lambda part: not part.startswith("train"))
    return f"type resim detect train {folder} --split {train}" + (f" --val {others[0]}" if others else "")


def _cvat_xml(file: Path) -> str:
    try:
        _, root = next(ElementTree.iterparse(file, events=("start",)))
    except (OSError, ElementTree.ParseError, StopIteration):
        return ""
    if root.tag != "annotations":
        return ""
    return f"{file.name} is in CVAT format: export it from CVAT as 'COCO 1.0', then type resim detect train DIR"
