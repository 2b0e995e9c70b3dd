"""PASCAL VOC's layout: a folder a year with Annotations (XML), ImageSets/Main (lists of ids) and JPEGImages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from resim.detection.objects import Annotated, make_record
from resim.detection.records import DetectionData, Record
from resim.detection.repair import Repairs, finite, nothing_left, sound_size
from resim.errors import UserError

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def read_voc(
    root: str | Path,
    split: str = "trainval",
    *,
    classes: Sequence[str] | None = None,
    strict: bool = False,
    check_images: bool = True,
) -> DetectionData:
    """Images with boxes in VOC's layout, of one year or several together. Masks are not read.

    VOC's corners are 1-based numbers of the first and the last pixel: (xmin, ymin, xmax, ymax) becomes
    (xmin - 1, ymin - 1, xmax, ymax), as in Detectron2; a box over the whole image is (0, 0, width, height).
    Image ids are VOC's (`"000012"`), annotation ids the position of an object in its file from 1, category ids the
    labels. Objects marked `difficult` are read, and marked.

    Args:
        root: `VOCdevkit`, the folder around it, or the folder of one year.
        split: lists of `ImageSets/Main`, with their years where the root has several:
            `"2007 trainval+2012 trainval"`, `"2007 test"`, `"trainval"`.
        classes: None: VOC's twenty.
        strict: raise at the first kind of fault instead of repairing.
        check_images: open every image file to compare its size with the annotation (0.1 ms an image).

    Raises:
        UserError: no such year or list, nothing left that can be used; or strict.
    """
    root = Path(root)
    names = tuple(classes) if classes is not None else CLASSES
    repairs = Repairs()
    records: dict[str, Record] = {}
    unknown: set[str] = set()
    for part in split.split("+"):
        folder, listed = _listed(root, part.strip(), split)
        for image_id in listed:
            if image_id in records:
                repairs.add("listed-twice", file=str(folder / "ImageSets"), image_id=image_id, detail=part.strip())
                continue
            record = _record(folder, image_id, names, check_images, repairs, unknown)
            if record is not None:
                records[image_id] = record
    repairs.stop_if(strict)
    source = f"{root} ({split})"
    if not records:
        raise nothing_left(source, repairs, "no image that can be used")
    if not any(len(record) for record in records.values()):
        found = f"; found: {', '.join(sorted(unknown)[:20])}: name them as the classes" if unknown else ""
        raise nothing_left(source, repairs, f"no object of {len(names)} classes in its {len(records)} images{found}")
    return DetectionData(
        records=tuple(records.values()),
        classes=names,
        category_ids=tuple(range(1, len(names) + 1)),
        kind="voc",
        source=source,
        repairs=repairs,
    )


def years(root: Path) -> dict[str, Path]:
    """The folders of years at or below a root, by their number."""
    if (root / "ImageSets" / "Main").is_dir():
        return {root.name.removeprefix("VOC"): root}
    devkit = root / "VOCdevkit" if (root / "VOCdevkit").is_dir() else root
    found = sorted(folder for folder in devkit.glob("VOC*") if (folder / "ImageSets" / "Main").is_dir())
    return {folder.name.removeprefix("VOC"): folder for folder in found}


def _listed(root: Path, part: str, split: str) -> tuple[Path, list[str]]:
    """The folder of a year, and the ids of one of its lists."""
    found = years(root)
    if not found:
        raise UserError(f"{root}: no VOC layout, neither here nor in VOC2007, VOC2012, ...: no ImageSets/Main")
    year, _, name = part.rpartition(" ")
    if not year and len(found) > 1:
        raise UserError(f"split {split!r}: several years at {root}: write {min(found)} {name or 'trainval'}")
    if year and year.strip() not in found:
        raise UserError(f"split {split!r}: no year {year} at {root}: there is {', '.join(found)}")
    folder = found[year.strip()] if year else next(iter(found.values()))
    path = folder / "ImageSets" / "Main" / f"{name}.txt"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in path.parent.glob("*.txt") if "_" not in file.stem))
        raise UserError(f"{path}: there is no such list; there is {there or 'none'}")
    listed = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not listed:
        raise UserError(f"{path}: empty split, no image is listed")
    return folder, listed


def _record(
    folder: Path, image_id: str, classes: tuple[str, ...], check: bool, repairs: Repairs, unknown: set[str]
) -> Record | None:
    path = folder / "Annotations" / f"{image_id}.xml"
    try:
        tree = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        repairs.add("missing-annotation", file=str(path), image_id=image_id, detail=str(reason))
        return None
    image = folder / "JPEGImages" / f"{image_id}.jpg"
    if not image.is_file():
        image = folder / "JPEGImages" / (tree.findtext("filename") or image.name)
    if not image.is_file():
        repairs.add("missing-image", file=str(path), image_id=image_id, detail=str(image))
        return None
    said = finite([tree.findtext("size/width"), tree.findtext("size/height")])
    size = sound_size(
        str(image),
        (int(said[0]), int(said[1])) if said and min(said) > 0 else None,
        file=str(path),
        image_id=image_id,
        check=check,
        repairs=repairs,
    )
    if size is None:
        return None
    objects = []
    for number, thing in enumerate(tree.findall("object"), start=1):
        name = (thing.findtext("name") or "").strip()
        if name not in classes:
            unknown.add(name)
            repairs.add("unknown-category", file=str(path), image_id=image_id, annotation_id=number, detail=repr(name))
            continue
        corners = [thing.findtext(f"bndbox/{corner}") for corner in ("xmin", "ymin", "xmax", "ymax")]
        numbers = finite(corners, 4)
        difficult = (thing.findtext("difficult") or "0").strip() == "1"
        box = corners if numbers is None else [numbers[0] - 1, numbers[1] - 1, numbers[2], numbers[3]]
        label = classes.index(name) + 1
        objects.append(Annotated(annotation_id=number, label=label, box=box, difficult=difficult))
    return make_record(
        objects,
        file=str(path),
        image=str(image),
        image_id=image_id,
        width=size[0],
        height=size[1],
        with_masks=False,
        repairs=repairs,
    )
