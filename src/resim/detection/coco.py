"""COCO's layout: one JSON file of images, annotations and categories, and the images in a folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resim.detection.locate import locate_files
from resim.detection.objects import Annotated, make_record
from resim.detection.records import DetectionData
from resim.detection.repair import Repairs, finite, nothing_left, sound_size
from resim.errors import UserError

PREFIXES = ("instances_", "person_keypoints_", "objects_")


def read_coco(
    path: str | Path,
    images: str | Path | Sequence[str | Path] | None = None,
    *,
    strict: bool = False,
    check_images: bool = True,
) -> DetectionData:
    """A COCO file of any classes: boxes, polygons or RLE, crowd regions, keypoints. An info block is not needed.

    Labels go by the category ids in ascending order, so that two files with the same categories agree. Boxes become
    (x, y, x + width, y + height); keypoints stay COCO's.

    Args:
        path: the JSON file.
        images: folder or folders in which the images are looked for by `file_name`, in them and then below them.
            None: the usual places beside the file (`images/train2017`, `train2017`, `images`, its own folder).
        strict: raise at the first kind of fault instead of repairing.
        check_images: open every image file to compare its size with the annotation (0.1 ms an image).

    Raises:
        UserError: not a COCO file, categories that contradict each other, no image or no object left; or strict.
    """
    path = Path(path)
    content = _load(path)
    classes, category_ids, keypoint_names, keypoint_labels = _categories(content["categories"], path)
    labels = {number: label for label, number in enumerate(category_ids, start=1)}
    repairs = Repairs()
    folders = _folders(path, images)
    located = locate_files((image["file_name"] for image in content["images"]), folders)
    by_image = _by_image(content, path, repairs)
    with_masks = any(entry.get("segmentation") for entry in content["annotations"])

    records = []
    for image_id, image in _images(content, path, repairs).items():
        place = located[image["file_name"]]
        found = place.path
        if found is None:
            repairs.add("missing-image", file=str(path), image_id=image_id, detail=place.fault)
            continue
        if place.note:
            repairs.add("other-name", file=str(path), image_id=image_id, detail=place.note)
        said = finite([image.get("width"), image.get("height")])
        size = sound_size(
            found,
            (int(said[0]), int(said[1])) if said and min(said) > 0 else None,
            file=str(path),
            image_id=image_id,
            check=check_images,
            repairs=repairs,
        )
        if size is None:
            continue
        objects = [_annotated(entry, labels, path, repairs) for entry in by_image.get(image_id, ())]
        records.append(
            make_record(
                [thing for thing in objects if thing is not None],
                file=str(path),
                image=found,
                image_id=image_id,
                width=size[0],
                height=size[1],
                with_masks=with_masks,
                num_keypoints=len(keypoint_names),
                repairs=repairs,
            )
        )
    repairs.stop_if(strict)
    if not records:
        packed = f"unpack {path.stem}.tar and " if path.with_suffix(".tar").is_file() else ""
        where = f"{', '.join(map(str, folders)) or 'no folder'}; {packed}name the images' folder with --images-in"
        raise nothing_left(str(path), repairs, f"no image that can be used (looked in {where})")
    if not any(len(record) for record in records):
        raise nothing_left(str(path), repairs, f"no annotated object in its {len(records)} images")
    return DetectionData(
        records=tuple(records),
        classes=classes,
        category_ids=category_ids,
        kind="coco",
        source=str(path),
        keypoint_names=keypoint_names,
        keypoint_labels=keypoint_labels,
        repairs=repairs,
    )


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): name a COCO JSON file") from None
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error})") from None
    keys = ("images", "annotations", "categories")
    missing = [key for key in keys if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if missing:
        raise UserError(f"{path}: not a COCO file, it has no list of {', '.join(missing)}")
    for key in keys:
        needed = {"images": ("id", "file_name"), "annotations": ("image_id", "category_id"), "categories": ("id",)}[key]
        for position, entry in enumerate(content[key]):
            if not isinstance(entry, dict) or any(not isinstance(entry.get(name), int | str) for name in needed):
                raise UserError(f"{path}: entry {position} of {key} lacks {' or '.join(needed)}")
            if not isinstance(entry.get("file_name", ""), str):
                raise UserError(f"{path}: entry {position} of {key} has a file_name that is not text")
    return content


def _categories(
    entries: list[dict[str, Any]], path: Path
) -> tuple[tuple[str, ...], tuple[int, ...], tuple[str, ...], tuple[int, ...]]:
    """Names and ids of the classes, names of their keypoints and the labels that have them."""
    if not entries:
        raise UserError(f"{path}: no categories")
    if not all(isinstance(entry["id"], int) for entry in entries):
        raise UserError(f"{path}: category ids must be whole numbers")
    entries = sorted(entries, key=lambda entry: entry["id"])
    ids = tuple(entry["id"] for entry in entries)
    if len(set(ids)) < len(ids):
        twice = next(number for number in ids if ids.count(number) > 1)
        raise UserError(f"{path}: category id {twice} is there twice")
    if not all(isinstance(entry.get("keypoints") or [], list) for entry in entries):
        raise UserError(f"{path}: the keypoints of a category must be a list of names")
    named = {tuple(entry["keypoints"]) for entry in entries if entry.get("keypoints")}
    if len(named) > 1:
        raise UserError(f"{path}: {len(named)} different lists of keypoints; the classes with keypoints must share one")
    with_keypoints = tuple(label for label, entry in enumerate(entries, start=1) if entry.get("keypoints"))
    names = tuple(str(entry.get("name", entry["id"])) for entry in entries)
    return names, ids, next(iter(named), ()), with_keypoints


def _images(content: dict[str, Any], path: Path, repairs: Repairs) -> dict[int | str, dict[str, Any]]:
    images: dict[int | str, dict[str, Any]] = {}
    for image in content["images"]:
        if image["id"] in images:
            detail = f"{image['file_name']} and {images[image['id']]['file_name']}"
            repairs.add("listed-twice", file=str(path), image_id=image["id"], detail=detail)
        images.setdefault(image["id"], image)
    return images


def _by_image(content: dict[str, Any], path: Path, repairs: Repairs) -> dict[int | str, list[dict[str, Any]]]:
    listed = {image["id"] for image in content["images"]}
    by_image: dict[int | str, list[dict[str, Any]]] = {}
    for position, entry in enumerate(content["annotations"], start=1):
        if not isinstance(entry.get("id"), int) or abs(entry["id"]) >= 2**63:
            entry["id"] = position  # some exporters leave it out; it only names the annotation in messages
        if entry["image_id"] in listed:
            by_image.setdefault(entry["image_id"], []).append(entry)
        else:
            image_id, detail = entry["image_id"], "no such image in the file"
            repairs.add("unknown-image", file=str(path), image_id=image_id, annotation_id=entry["id"], detail=detail)
    return by_image


def _annotated(entry: dict[str, Any], labels: dict[int, int], path: Path, repairs: Repairs) -> Annotated | None:
    if entry["category_id"] not in labels:
        detail = f"category id {entry['category_id']}"
        image_id, number = entry["image_id"], entry["id"]
        repairs.add("unknown-category", file=str(path), image_id=image_id, annotation_id=number, detail=detail)
        return None
    box = entry.get("bbox")
    numbers = finite(box, 4)
    if numbers is not None:
        x, y, width, height = numbers
        box = [x, y, x + width, y + height]
    return Annotated(
        annotation_id=entry["id"],
        label=labels[entry["category_id"]],
        box=box,
        segmentation=entry.get("segmentation"),
        keypoints=entry.get("keypoints"),
        crowd=bool(entry.get("iscrowd", 0)),
        area=entry.get("area"),
    )


def _folders(path: Path, images: str | Path | Sequence[str | Path] | None) -> list[Path]:
    """Where the images are looked for; all of these exist."""
    if images is not None:
        named = [Path(folder) for folder in ([images] if isinstance(images, str | Path) else images)]
        for folder in named:
            if not folder.is_dir():
                remedy = "unpack it and name the folder" if folder.is_file() else "name the folder of the images"
                raise UserError(f"{folder}: not a folder of images: {remedy}")
        return named
    split = path.stem
    for prefix in PREFIXES:
        split = split.removeprefix(prefix)
    roots = [path.parent.parent, path.parent] if path.parent.name == "annotations" else [path.parent]
    usual = [root / name for root in roots for name in (f"images/{split}", split, path.stem, "images")]
    there = {folder.resolve(): folder for folder in reversed([*usual, *roots]) if folder.is_dir()}
    return list(reversed(there.values()))
