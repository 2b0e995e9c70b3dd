"""COCO's layout: one JSON file of images, annotations and categories, and the images in a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from resim.counts import counted
from resim.datasets.coco_annotations import Corners, check_pixels, corners_of, read_annotation
from resim.datasets.coco_categories import read_categories
from resim.datasets.coco_entries import annotations_by_image, read_images
from resim.datasets.coco_file import load_coco
from resim.datasets.coco_values import as_id
from resim.datasets.locate import locate_files
from resim.datasets.objects import make_record
from resim.datasets.records import DetectionData
from resim.datasets.repair import Repairs, finite, nothing_left, sound_size
from resim.datasets.swapped_sizes import SwappedSizes
from resim.errors import UserError

PREFIXES = ("instances_", "person_keypoints_", "objects_")


def read_coco(
    path: str | Path,
    images: str | Path | Sequence[str | Path] | None = None,
    *,
    strict: bool = False,
    check_images: bool = True,
    crowd_as_objects: bool = False,
) -> DetectionData:
    """A COCO file of any classes: boxes, polygons or RLE, crowd regions, keypoints. An info block is not needed.

    What tools write otherwise than COCO is read where its meaning is certain, and noted (`faults.NOTES`). Labels go by
    the category ids in ascending order, so that two files with the same categories agree. Boxes become
    (x, y, x + width, y + height); keypoints stay COCO's.

    Args:
        path: the JSON file.
        images: folder or folders in which the images are looked for by `file_name`, in them and then below them.
            None: the usual places beside the file (`images/train2017`, `train2017`, `images`, its own folder).
        strict: raise at the first kind of fault instead of repairing.
        check_images: open every image file to compare its size with the annotation (0.1 ms an image).
        crowd_as_objects: take crowd regions as objects: CVAT, RectLabel and SAM's tools mark each brush mask as one.

    Raises:
        UserError: not a COCO file, categories that contradict each other, no image or no object left; or strict.
    """
    path = Path(path)
    repairs = Repairs()
    content = load_coco(path, repairs)
    annotations = content["annotations"]
    categories = read_categories(content["categories"], annotations, path, repairs)
    folders = _folders(path, images)
    counts = Counter(as_id(entry.get("image_id")) for entry in annotations)
    listed = read_images(content["images"], counts, path, repairs)
    located = locate_files((image["file_name"] for image in listed.values() if image), folders)
    by_image = annotations_by_image(annotations, listed, path, repairs)
    check_pixels(annotations, path)
    with_masks = any(entry.get("segmentation") for entry in annotations)
    corners = Corners()

    records = []
    swapped = SwappedSizes()
    for image_id, image in listed.items():
        if not image:
            continue
        own = by_image.get(image_id, [])
        place = located[image["file_name"]]
        found = place.path
        if found is None:
            repairs.add("missing-image", file=str(path), image_id=image_id, detail=place.fault, num_objects=len(own))
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
            num_objects=len(own),
            doubt=lambda size, note, detail, image_id=image_id, own=own: swapped.add(
                image_id, size, corners_of(own), note, detail, len(own)
            ),
        )
        if size is None:
            continue
        noted = swapped.repairs_of(image_id, repairs)
        objects = []
        for entry in own:
            label = categories.label_of(entry, noted, path)
            if label is not None:
                note = partial(noted.add, file=str(path), image_id=image_id, annotation_id=entry["id"])
                corners.add(entry, size, note)
                num_keypoints = len(categories.keypoint_names)
                objects.append(read_annotation(entry, label, size, num_keypoints, crowd_as_objects, note))
        records.append(
            make_record(
                objects,
                file=str(path),
                image=found,
                image_id=image_id,
                width=size[0],
                height=size[1],
                with_masks=with_masks,
                num_keypoints=len(categories.keypoint_names),
                repairs=noted,
            )
        )
    records = swapped.settle(records, repairs)
    corners.note_them()
    if any("neg_category_ids" in image for image in content["images"][:1]):
        repairs.add("lvis", file=str(path), detail="its images have neg_category_ids")
    repairs.stop_if(strict)
    if not records:
        packed = f"unpack {path.stem}.tar and " if path.with_suffix(".tar").is_file() else ""
        where = f"{', '.join(map(str, folders)) or 'no folder'}; {packed}name the images' folder with --images-in"
        raise nothing_left(str(path), repairs, f"no image that can be used (looked in {where})")
    if not any(len(record) for record in records):
        none = (
            "" if annotations else ": it lists no annotations, like image_info_test-dev2017.json; name one with labels"
        )
        raise nothing_left(str(path), repairs, f"no annotated object in its {counted(len(records), 'image')}{none}")
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
