"""Folders and files of labelling tools: what they are, and the command to type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

_TRAIN, _VAL = ("train", "training"), ("valid", "val", "validation", "test")
_SNIFFED = 64  # JSON files of a folder that are opened at most


def recognise_folder(folder: Path) -> str:
    """What a folder without a split that can be read is, and the command to type; empty where nothing is recognised."""
    makers = {"_annotations.coco.json": "Roboflow", "labels.json": "FiftyOne", "annotations.json": "a labelling tool"}
    for name, maker in makers.items():
        parts = _parts(folder, name)
        if parts:
            there = ", ".join(f"{part}/{name}" for part in parts)
            return f"this is an export of {maker} in COCO's form, {there}: {_by_split(folder, parts)}"
    xml_parts = [part for part in (*_TRAIN, *_VAL) if any((folder / part).glob("*.xml"))]
    if xml_parts:
        command = f"{_by_split(folder, xml_parts)} --classes NAME NAME ..."
        return f"this is an export of Roboflow or LabelImg in VOC's form, {', '.join(xml_parts)}: {command}"
    if (folder / "metadata.json").is_file() and (folder / "samples.json").is_file():
        return (
            "this is FiftyOne's own form: export it by dataset.export(export_dir=DIR, "
            "dataset_type=fo.types.COCODetectionDataset), then type resim detect train DIR"
        )
    if (folder / "annotations.xml").is_file():
        return _cvat_xml(folder / "annotations.xml")
    below = sorted(folder.glob("*.json"))[:_SNIFFED]
    hints = [recognise_json(file) for file in below]
    kinds = {text for text in hints if text}
    if len(kinds) == 1 and all(hints):
        return kinds.pop()
    names = {file.name for pattern in ("annotations/*.json", "*.json") for file in folder.glob(pattern)}
    splits = sorted(name[len("instances_") : -len(".json")] for name in names if name.startswith("instances_"))
    if splits:
        return f"there is {', '.join(f'instances_{split}.json' for split in splits)}: {_by_split(folder, splits)}"
    return ""


def recognise_json(file: Path) -> str:
    """What a JSON file that is no COCO file is, and the remedy; empty where it is not recognised."""
    try:
        content: Any = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return ""
    first = content[0] if isinstance(content, list) and content else None
    if isinstance(content, dict):
        if "shapes" in content and ("imagePath" in content or "imageData" in content):
            return (
                f"these are LabelMe's files, one an image: convert them by labelme2coco.py of LabelMe's repository "
                f"(examples/instance_segmentation): python labelme2coco.py {file.parent} OUT --labels labels.txt, then "
                "type resim detect train OUT/annotations.json"
            )
        if "_via_img_metadata" in content or any(
            isinstance(entry, dict) and "regions" in entry and "filename" in entry for entry in content.values()
        ):
            return "this is VIA's own form: export COCO there, then type resim detect train THAT.json"
        if isinstance(content.get("items"), list) and isinstance(content.get("categories"), dict):
            return "this is Datumaro's form: export 'COCO 1.0' in CVAT, then type resim detect train DIR"
        if "samples" in content:
            return "this is FiftyOne's own form: export fo.types.COCODetectionDataset, then type resim detect train DIR"
    if isinstance(first, dict):
        if "image_id" in first and "score" in first:
            return f"these are COCO results, not a data set: type resim detect eval {file} DATA"
        if "data" in first and ("annotations" in first or "completions" in first):
            return "this is Label Studio's own JSON: export COCO or YOLO there, then type resim detect train DIR"
        if "image" in first and "annotations" in first:
            return "this is CreateML's form: export COCO instead, then type resim detect train THAT.json"
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
