"""PASCAL VOC's layout: a folder a year with Annotations (XML), ImageSets/Main (lists of ids) and JPEGImages.

Labelling tools write the same XML without lists, next to the images or in a folder of its own; these are read as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from resim.counts import counted
from resim.datasets.annotation_values import finite_numbers
from resim.datasets.image_sizes import ExchangedSizes, annotated_size, checked_size
from resim.datasets.record_checks import Annotated, fractions_fault, make_record
from resim.datasets.records import DetectionData, Record
from resim.datasets.repairs import Repairs, empty_split_error
from resim.datasets.voc_layout import VocFolder, list_images
from resim.datasets.voc_xml import CORNERS, corner_texts, numeric_corners, parse_xml, read_flag
from resim.reading import read_file

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
    labels. Objects marked `difficult` are read with that mark. The image of an id has its name, with any extension;
    otherwise it is the one that `<filename>` names.

    Args:
        root: `VOCdevkit`, the folder around it, or the folder of one year; or a folder of XML files, with the images
            next to them or in a folder next to theirs.
        split: lists of `ImageSets/Main`, with their years if the root has several:
            `"2007 trainval+2012 trainval"`, `"2007 test"`, `"trainval"`. Without lists: a folder of the root, or
            `"trainval"` for all of it.
        classes: None: VOC's twenty.
        strict: raise at the first kind of fault instead of repairing it.
        check_images: open every image file to compare its size with the annotation (0.1 ms an image).

    Raises:
        UserError: no such year or list, no usable image or object; or strict.
    """
    root = Path(root)
    repairs = Repairs()
    reader = _ImageReader(
        classes=tuple(classes) if classes is not None else CLASSES,
        are_named=classes is not None,
        check_images=check_images,
        repairs=repairs,
    )
    records: dict[str, Record] = {}
    for part in split.split("+"):
        folder, image_ids = list_images(root, part.strip(), split)
        for image_id in image_ids:
            if image_id in records:
                repairs.add("listed-twice", file=str(folder.root), image_id=image_id, detail=part.strip())
                continue
            record = reader.read(folder, image_id)
            if record is not None:
                records[image_id] = record
    usable = tuple(reader.exchanged.resolve(list(records.values()), repairs))
    repairs.stop_if(strict)
    source = f"{root} ({split})"
    if not usable:
        raise empty_split_error(source, repairs, "no usable image")
    if not any(len(record) for record in usable):
        names = ", ".join(sorted(reader.unknown_classes)[:20])
        remedy = f"; it has {names}: name them with --classes" if names else ""
        num_images = counted(len(usable), "image")
        raise empty_split_error(
            source, repairs, f"no object of {len(reader.classes)} classes in its {num_images}{remedy}"
        )
    return DetectionData(
        records=usable,
        classes=reader.classes,
        category_ids=tuple(range(1, len(reader.classes) + 1)),
        kind="voc",
        source=source,
        repairs=repairs,
    )


@dataclass(kw_only=True)
class _ImageReader:
    """Reads one image after the other; `exchanged` and `unknown_classes` collect what concerns all of them."""

    classes: tuple[str, ...]
    are_named: bool
    check_images: bool
    repairs: Repairs
    unknown_classes: set[str] = field(default_factory=set)
    exchanged: ExchangedSizes = field(default_factory=ExchangedSizes)

    def read(self, folder: VocFolder, image_id: str) -> Record | None:
        """The record of an image; None, with a fault in `repairs`, if it cannot be used."""
        path = folder.xml_file(image_id)
        if path is None:
            file = str(folder.annotations / f"{image_id}.xml")
            self.repairs.add("missing-annotation", file=file, image_id=image_id, detail="no such file")
            return None
        note = partial(self.repairs.add, file=str(path), image_id=image_id)
        try:
            tree = parse_xml(read_file(path))
        except (OSError, ElementTree.ParseError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            note("missing-annotation", detail=str(reason))
            return None
        if tree.tag.lower() != "annotation" and tree.find("object") is None:
            note("missing-annotation", detail=f"not VOC's XML: its root is <{tree.tag}>, not <annotation>")
            return None
        image, remark = folder.image_file(image_id, (tree.findtext("filename") or "").strip())
        if image is None:
            note("missing-image", detail=remark)
            return None
        if remark:
            note("other-name", detail=remark)
        num_objects = len(tree.findall("object"))
        size = checked_size(
            str(image),
            annotated_size(tree.findtext("size/width"), tree.findtext("size/height")),
            file=str(path),
            image_id=image_id,
            check=self.check_images,
            repairs=self.repairs,
            num_objects=num_objects,
            on_exchanged=lambda size, note, detail: self.exchanged.add(
                image_id, size, numeric_corners(tree), note, detail, num_objects
            ),
        )
        if size is None:
            return None
        repairs = self.exchanged.repairs_of(image_id, self.repairs)
        return make_record(
            self._objects(tree, str(path), image_id, repairs),
            file=str(path),
            image=str(image),
            image_id=image_id,
            width=size[0],
            height=size[1],
            with_masks=False,
            repairs=repairs,
        )

    def _objects(self, tree: ElementTree.Element, file: str, image_id: str, repairs: Repairs) -> list[Annotated]:
        """The objects of a file that belong to one of the classes."""
        objects = []
        for number, element in enumerate(tree.findall("object"), start=1):
            note = partial(repairs.add, file=file, image_id=image_id, annotation_id=number)
            name = (element.findtext("name") or "").strip()
            label = self._label(name, note)
            if label is None:
                continue
            corners = corner_texts(element)
            box = finite_numbers(corners, 4)
            if "," in "".join(element.findtext(f"bndbox/{corner}") or "" for corner in CORNERS) and box is not None:
                note("decimal-comma", detail=", ".join(f"{value:g}" for value in box))
            if box is not None and 0 in box[:2]:
                note("zero-based", detail=f"{box[0]:g}, {box[1]:g}, {box[2]:g}, {box[3]:g}")
            if box is not None and (box[0] > box[2] or box[1] > box[3]):
                note("corners-reversed", detail=f"{box[0]:g}, {box[1]:g}, {box[2]:g}, {box[3]:g}")
                box = [min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])]
            shifted = None if box is None else [box[0] - 1, box[1] - 1, box[2], box[3]]
            fault = (
                "no bndbox" if element.find("bndbox") is None else "" if shifted is None else fractions_fault(shifted)
            )
            difficult = read_flag(element.findtext("difficult"))
            if difficult is None:
                note("odd-flag", detail=f"difficult {element.findtext('difficult')!r}")
            objects.append(
                Annotated(
                    annotation_id=number,
                    label=label,
                    box=None if fault else shifted or corners,
                    box_fault=fault,
                    difficult=bool(difficult),
                )
            )
        return objects

    def _label(self, name: str, note: Callable[..., None]) -> int | None:
        """The label of a class by its name, in any letter case; None, with a fault, if it is none of the classes."""
        if name in self.classes:
            return self.classes.index(name) + 1
        similar = [label for label, known in enumerate(self.classes, start=1) if known.casefold() == name.casefold()]
        if len(similar) == 1:
            note("category-case", detail=f"{name!r} is {self.classes[similar[0] - 1]!r}")
            return similar[0]
        self.unknown_classes.add(name)
        note("unknown-category", detail=repr(name) if self.are_named else f"{name!r}: name it with --classes")
        return None
