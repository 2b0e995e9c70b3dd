"""PASCAL VOC's layout: a folder a year with Annotations (XML), ImageSets/Main (lists of ids) and JPEGImages.

Labelling tools write the same XML without lists, beside the images or in a folder of its own; that is read too.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from resim.counts import counted
from resim.datasets.locate import FileIndex, spelling
from resim.datasets.objects import Annotated, make_record
from resim.datasets.records import DetectionData, Record
from resim.datasets.repair import Repairs, finite, nothing_left, sound_size
from resim.datasets.swapped_sizes import SwappedSizes
from resim.datasets.voc_files import parse_xml, read_flag, read_ids
from resim.errors import UserError
from resim.views.walk import PassedOver, walk_files

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
    labels. Objects marked `difficult` are read, and marked. The image of an id has its name, with any ending; else it
    is the one that `<filename>` names.

    Args:
        root: `VOCdevkit`, the folder around it, or the folder of one year; or a folder of XML files, with the images
            beside them or in a folder next to theirs.
        split: lists of `ImageSets/Main`, with their years where the root has several:
            `"2007 trainval+2012 trainval"`, `"2007 test"`, `"trainval"`. Without lists: a folder of the root, or
            `"trainval"` for all of it.
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
    swapped = SwappedSizes()
    for part in split.split("+"):
        folder, listed = _listed(root, part.strip(), split)
        for image_id in listed:
            if image_id in records:
                repairs.add("listed-twice", file=str(folder.root), image_id=image_id, detail=part.strip())
                continue
            record = _record(folder, image_id, names, check_images, repairs, unknown, swapped)
            if record is not None:
                records[image_id] = record
    kept = tuple(swapped.settle(list(records.values()), repairs))
    repairs.stop_if(strict)
    source = f"{root} ({split})"
    if not kept:
        raise nothing_left(source, repairs, "no image that can be used")
    if not any(len(record) for record in kept):
        found = f"; it has {', '.join(sorted(unknown)[:20])}: name them with --classes" if unknown else ""
        raise nothing_left(
            source, repairs, f"no object of {len(names)} classes in its {counted(len(kept), 'image')}{found}"
        )
    return DetectionData(
        records=kept,
        classes=names,
        category_ids=tuple(range(1, len(names) + 1)),
        kind="voc",
        source=source,
        repairs=repairs,
    )


class VocFolder:
    """XML files and images of one year, or of a folder without lists.

    Args:
        root: of both.
        annotations: the folder of the XML files.
        images: the folder in which images are looked for.
    """

    def __init__(self, root: Path, annotations: Path, images: Path) -> None:
        self.root, self.annotations, self.images = root, annotations, images

    @functools.cached_property
    def xml(self) -> dict[str, Path]:
        """The XML files by id, that is by their path without its ending."""
        if not self.annotations.is_dir():
            return {}
        walked = walk_files(str(self.annotations), lambda name: name.lower().endswith(".xml"), PassedOver())
        paths = sorted(Path(path) for path, _ in walked)
        return {path.relative_to(self.annotations).as_posix()[: -len(".xml")]: path for path in paths}

    @functools.cached_property
    def spelled(self) -> dict[str, str]:
        """The ids by their spelling."""
        return {spelling(image_id): image_id for image_id in self.xml}

    @functools.cached_property
    def index(self) -> FileIndex:
        """All images."""
        return FileIndex([self.images] if self.images.is_dir() else [])

    def is_known(self, image_id: str) -> bool:
        """Whether there is an XML file of this id, in any spelling."""
        return image_id in self.xml or spelling(image_id) in self.spelled

    def image(self, image_id: str, filename: str) -> tuple[Path | None, str]:
        """The image of an id; and what is odd about its name, or why there is none."""
        usual = self.images / f"{image_id}.jpg"
        if usual.is_file() and ".." not in usual.parts:
            is_other = filename not in ("", usual.name) and (self.images / Path(filename).name).is_file()
            stands = Path(filename).stem != usual.stem
            return usual, f'<filename> is "{filename}", "{usual.name}" is taken' if is_other and stands else ""
        files, _ = self.index.fits(f"{image_id}.jpg")
        if len(files) > 1 and filename:
            files = [path for path in files if Path(path).name == Path(filename).name] or files
        if len(files) == 1:
            path = Path(files[0])
            return path, "" if path.stem == Path(image_id).name else f'"{image_id}" is {self.index.shown(files[0])}'
        named, _ = self.index.fits(filename) if filename else ([], False)
        named = [path for path in named if not self.is_known(Path(path).stem)]  # another XML file's image is not taken
        if len(named) == 1:
            return Path(named[0]), f'"{image_id}" is {self.index.shown(named[0])} by its <filename>'
        if files:
            return None, f"{len(files)} files would fit, {files[0]} and {files[1]}"
        near = self.index.nearest(f"{image_id}.jpg")
        return None, f"{usual}" + (f', the nearest is "{near}"' if near else "")


def years(root: Path) -> dict[str, Path]:
    """The folders of years at or below a root, by their number."""
    if (root / "ImageSets" / "Main").is_dir():
        return {root.name.removeprefix("VOC"): root}
    devkit = root / "VOCdevkit" if (root / "VOCdevkit").is_dir() else root
    found = sorted(folder for folder in devkit.glob("VOC*") if (folder / "ImageSets" / "Main").is_dir())
    return {folder.name.removeprefix("VOC"): folder for folder in found}


def xml_folder(root: Path) -> VocFolder | None:
    """A folder without lists: XML files in it, or in `Annotations` or the like; None if there are none."""
    for name in ("", "Annotations", "annotations", "labels", "xmls", "xml"):
        folder = root / name
        if folder.is_dir() and any(path.name != "annotations.xml" for path in folder.glob("*.xml")):  # CVAT's own
            images = root / "JPEGImages"
            return VocFolder(root, folder, images if images.is_dir() else root)
    return None


def _listed(root: Path, part: str, split: str) -> tuple[VocFolder, list[str]]:
    """The folder of a year, and the ids of one of its lists; or a folder without lists, and all of its ids."""
    found = years(root)
    if not found:
        without_lists = xml_folder(root / part) or (xml_folder(root) if part == "trainval" else None)
        if without_lists is not None:
            return without_lists, list(without_lists.xml)
        raise UserError(f"{root}: no VOC layout, neither here nor in VOC2007, VOC2012, ...: no ImageSets/Main")
    year, _, name = part.rpartition(" ")
    if not year and len(found) > 1:
        raise UserError(f"split {split!r}: several years at {root}: write {min(found)} {name or 'trainval'}")
    if year and year.strip() not in found:
        raise UserError(f"split {split!r}: no year {year} at {root}: there is {', '.join(found)}")
    root = found[year.strip()] if year else next(iter(found.values()))
    path = root / "ImageSets" / "Main" / f"{name}.txt"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in path.parent.glob("*.txt") if "_" not in file.stem))
        raise UserError(f"{path}: there is no such list; there is {there or 'none'}: name one with --split")
    folder = VocFolder(root, root / "Annotations", root / "JPEGImages")
    try:
        listed = read_ids(path, folder.is_known)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if not listed:
        raise UserError(f"{path}: empty split, no image is listed")
    return folder, listed


def _record(
    folder: VocFolder,
    image_id: str,
    classes: tuple[str, ...],
    check: bool,
    repairs: Repairs,
    unknown: set[str],
    swapped: SwappedSizes,
) -> Record | None:
    path = folder.xml.get(image_id) or folder.xml.get(folder.spelled.get(spelling(image_id), ""))
    if path is None:
        file = str(folder.annotations / f"{image_id}.xml")
        repairs.add("missing-annotation", file=file, image_id=image_id, detail="there is no such file")
        return None
    try:
        tree = parse_xml(path.read_bytes())
    except (OSError, ElementTree.ParseError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        repairs.add("missing-annotation", file=str(path), image_id=image_id, detail=str(reason))
        return None
    image, odd = folder.image(image_id, (tree.findtext("filename") or "").strip())
    if image is None:
        repairs.add("missing-image", file=str(path), image_id=image_id, detail=odd)
        return None
    if odd:
        repairs.add("other-name", file=str(path), image_id=image_id, detail=odd)
    said = finite([tree.findtext("size/width"), tree.findtext("size/height")])
    size = sound_size(
        str(image),
        (int(said[0]), int(said[1])) if said and min(said) > 0 else None,
        file=str(path),
        image_id=image_id,
        check=check,
        repairs=repairs,
        num_objects=len(tree.findall("object")),
        doubt=lambda size, note, detail: swapped.add(
            image_id, size, _corners(tree), note, detail, len(tree.findall("object"))
        ),
    )
    if size is None:
        return None
    noted = swapped.repairs_of(image_id, repairs)
    objects = []
    for number, thing in enumerate(tree.findall("object"), start=1):
        note = functools.partial(noted.add, file=str(path), image_id=image_id, annotation_id=number)
        name = (thing.findtext("name") or "").strip()
        if name not in classes:
            unknown.add(name)
            note("unknown-category", detail=repr(name))
            continue
        corners = [thing.findtext(f"bndbox/{corner}") for corner in ("xmin", "ymin", "xmax", "ymax")]
        box = finite(corners, 4)
        if box is not None and (box[0] > box[2] or box[1] > box[3]):
            note("corners-reversed", detail=f"{box[0]:g}, {box[1]:g}, {box[2]:g}, {box[3]:g}")
            box = [min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])]
        difficult = read_flag(thing.findtext("difficult"))
        if difficult is None:
            note("odd-flag", detail=f"difficult {thing.findtext('difficult')!r}")
        objects.append(
            Annotated(
                annotation_id=number,
                label=classes.index(name) + 1,
                box=corners if box is None else [box[0] - 1, box[1] - 1, box[2], box[3]],
                box_fault="no bndbox" if thing.find("bndbox") is None else "",
                difficult=bool(difficult),
            )
        )
    return make_record(
        objects,
        file=str(path),
        image=str(image),
        image_id=image_id,
        width=size[0],
        height=size[1],
        with_masks=False,
        repairs=noted,
    )


def _corners(tree: ElementTree.Element) -> list[list[float]]:
    """(xmin, ymin, xmax, ymax) of the objects, where they are numbers."""
    named = ("xmin", "ymin", "xmax", "ymax")
    boxes = (finite([thing.findtext(f"bndbox/{corner}") for corner in named]) for thing in tree.findall("object"))
    return [box for box in boxes if box is not None]
