"""COCO's layout: one JSON file of images, annotations and categories, and a folder of images."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from resim.counts import counted
from resim.datasets.coco_annotations import CornerCheck, check_pixels, corners_of, read_annotation
from resim.datasets.coco_categories import Categories, read_categories
from resim.datasets.coco_file import load_coco
from resim.datasets.coco_images import group_annotations, read_images
from resim.datasets.image_sizes import ExchangedSizes, annotated_size, checked_size
from resim.datasets.named_files import LocatedFile, locate_files
from resim.datasets.record_checks import make_record
from resim.datasets.records import DetectionData, Record
from resim.datasets.repairs import Repairs, empty_split_error
from resim.errors import UserError
from resim.runs.bars import show_bar

_MANY_IMAGES = 10_000  # from which on progress is shown
PREFIXES = ("instances_", "person_keypoints_", "objects_")


def read_coco(
    path: str | Path,
    images: str | Path | Sequence[str | Path] | None = None,
    *,
    strict: bool = False,
    check_images: bool = True,
    crowd_as_objects: bool = False,
) -> DetectionData:
    """A COCO file of any classes, with boxes, polygons or RLE, crowd regions and keypoints.

    Notations that differ from COCO's are read if their meaning is certain, and reported (`fault_kinds`). Labels are in
    ascending order of the category ids, so that two files with the same categories agree. Boxes become
    (x, y, x + width, y + height); keypoints stay as in COCO.

    Args:
        path: the JSON file. It needs no `info`.
        images: folder or folders in which, and then below which, each `file_name` is searched. None: the usual places
            next to the file (`images/train2017`, `train2017`, `images`, its own folder).
        strict: raise at the first kind of fault instead of repairing it.
        check_images: open every image file to compare its size with the annotation (0.1 ms an image).
        crowd_as_objects: read crowd regions as objects: CVAT, RectLabel and SAM's tools mark each brush mask as one.

    Raises:
        UserError: not a COCO file, categories that contradict each other, no usable image or object; or strict.
    """
    with _without_garbage_collection():
        return _read(Path(path), images, strict=strict, check_images=check_images, crowd_as_objects=crowd_as_objects)


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """While inside, no cycles are searched for: there are none in millions of lists, which each search would visit.

    Nor does the first search afterwards visit the lists: freezing and releasing them makes them old objects.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            if not gc.get_freeze_count():  # nobody else's objects are released
                gc.freeze()
                gc.unfreeze()
            gc.enable()


def _read(
    path: Path,
    images: str | Path | Sequence[str | Path] | None,
    *,
    strict: bool,
    check_images: bool,
    crowd_as_objects: bool,
) -> DetectionData:
    repairs = Repairs()
    content = load_coco(path, repairs)
    annotations = content["annotations"]
    categories = read_categories(content["categories"], annotations, path, repairs)
    folders = _image_folders(path, images)
    entries = read_images(content["images"], annotations, path, repairs)
    files = locate_files((entry["file_name"] for entry in entries.values() if entry), folders)
    groups = group_annotations(annotations, entries, path, repairs)
    check_pixels(annotations, path)
    reader = _ImageReader(
        path=path,
        categories=categories,
        with_masks=any(entry.get("segmentation") for entry in annotations),
        check_images=check_images,
        crowd_as_objects=crowd_as_objects,
        repairs=repairs,
    )
    has_annotations = bool(annotations)
    del annotations, content["annotations"]  # each is dropped once its record is made
    with _progress(path, len(entries)) as report:
        records = []
        for number, (image_id, entry) in enumerate(entries.items()):
            report(number)
            if entry:
                records.append(reader.read(entry, files[entry["file_name"]], groups.pop(image_id, [])))
    records = reader.exchanged.resolve([record for record in records if record is not None], repairs)
    reader.corners.report()
    if any("neg_category_ids" in entry for entry in content["images"][:1]):
        repairs.add("lvis", file=str(path), detail="its images have neg_category_ids")
    repairs.stop_if(strict)
    _check_not_empty(records, path, folders, repairs, has_annotations=has_annotations)
    return DetectionData(
        records=tuple(records),
        classes=categories.names,
        category_ids=categories.ids,
        kind="coco",
        source=str(path),
        keypoint_names=categories.keypoint_names,
        keypoint_labels=categories.keypoint_labels,
        repairs=repairs,
    )


@contextlib.contextmanager
def _progress(path: Path, num_images: int) -> Iterator[Callable[[int], None]]:
    """While inside, a bar for a file of many images, on the first process; call what it gives with the images done."""
    if num_images < _MANY_IMAGES or os.environ.get("RANK", "0") != "0":
        yield lambda done: None
        return
    with show_bar(f"reading {path.name}", num_images) as show_done:
        yield lambda done: show_done(done) if done % 256 == 0 else None


@dataclass(kw_only=True)
class _ImageReader:
    """Reads one image after the other; `corners` and `exchanged` collect what only all images together decide."""

    path: Path
    categories: Categories
    with_masks: bool
    check_images: bool
    crowd_as_objects: bool
    repairs: Repairs
    corners: CornerCheck = field(default_factory=CornerCheck)
    exchanged: ExchangedSizes = field(default_factory=ExchangedSizes)

    def read(self, entry: dict[str, Any], file: LocatedFile, annotations: list[dict[str, Any]]) -> Record | None:
        """The record of an image entry; None, with a fault in `repairs`, if its file cannot be used."""
        path, image_id, num_objects = str(self.path), entry["id"], len(annotations)
        note = partial(self.repairs.add, file=path, image_id=image_id)
        if file.path is None:
            note("missing-image", detail=file.fault, num_objects=num_objects)
            return None
        if file.note:
            note("other-name", detail=file.note)
        size = checked_size(
            file.path,
            annotated_size(entry.get("width"), entry.get("height")),
            file=path,
            image_id=image_id,
            check=self.check_images,
            repairs=self.repairs,
            num_objects=num_objects,
            on_exchanged=lambda size, note, detail: self.exchanged.add(
                image_id, size, corners_of(annotations), note, detail, num_objects
            ),
        )
        if size is None:
            return None
        repairs = self.exchanged.repairs_of(image_id, self.repairs)
        note = partial(repairs.add, file=path, image_id=image_id)
        num_keypoints = len(self.categories.keypoint_names)
        objects = []
        for annotation in annotations:
            label = self.categories.label_of(annotation, repairs, self.path)
            if label is not None:
                self.corners.add(annotation, size, note)
                objects.append(read_annotation(annotation, label, size, num_keypoints, self.crowd_as_objects, note))
        return make_record(
            objects,
            file=path,
            image=file.path,
            image_id=image_id,
            width=size[0],
            height=size[1],
            with_masks=self.with_masks,
            num_keypoints=num_keypoints,
            repairs=repairs,
        )


def _check_not_empty(
    records: list[Record], path: Path, folders: list[Path], repairs: Repairs, *, has_annotations: bool
) -> None:
    """Raise a UserError if there is no image or no object."""
    if not records:
        archive = path.with_suffix(".tar")
        unpack = f"unpack {archive.name} and " if archive.is_file() else ""
        searched = ", ".join(map(str, folders)) or "no folder"
        remedy = f"{unpack}name the folder of the images with --images-in"
        hint = f" (searched in {searched}; {remedy})" if "missing-image" in repairs.counts else ""
        raise empty_split_error(str(path), repairs, f"no usable image{hint}")
    if not any(len(record) for record in records):
        reason = f"no annotated object in its {counted(len(records), 'image')}"
        if not has_annotations:
            reason += ": it has no annotations, like image_info_test-dev2017.json; name a file that has labels"
        raise empty_split_error(str(path), repairs, reason)


def _image_folders(path: Path, images: str | Path | Sequence[str | Path] | None) -> list[Path]:
    """The existing folders in which images are searched."""
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
    existing = {folder.resolve(): folder for folder in reversed([*usual, *roots]) if folder.is_dir()}
    return list(reversed(existing.values()))
