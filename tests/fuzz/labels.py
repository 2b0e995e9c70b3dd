"""Label files of COCO, VOC, YOLO and Cityscapes, and COCO results."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detection_data import (
    CROWD,
    H,
    W,
    corners,
    picture,
    polygons,
    rectangle,
    thing,
    write_cityscapes,
    write_voc,
    xml_object,
)
from resim.datasets.layouts import read_detection
from resim.scores import results

_SPLIT = b"\n--- next file ---\n"


def with_pictures(folder: Path) -> None:
    """Two pictures next to a COCO file."""
    for name in ("1.png", "2.png"):
        picture(folder / "images" / name)


@functools.cache
def coco_trees() -> Sequence[Any]:
    """COCO files with boxes, polygons, a crowd region and keypoints."""
    images = [{"id": n, "file_name": f"{n}.png", "width": W, "height": H} for n in (1, 2)]
    dog, cat = {"id": 7, "name": "dog"}, {"id": 3, "name": "cat", "supercategory": "animal"}
    person = {"id": 1, "name": "person", "keypoints": ["nose", "left_eye", "right_eye"], "skeleton": [[1, 2]]}
    points = [12, 22, 2, 13, 23, 1, 0, 0, 0]
    return [
        {"images": images, "annotations": [thing(1, 1, 7, (10, 20, 30, 60)), thing(2, 2, 3, (0, 0, 100, 80))],
         "categories": [dog, cat], "info": {}},
        {"images": images, "categories": [dog],
         "annotations": [thing(1, 1, 7, (10, 20, 30, 60), iscrowd=1, segmentation=CROWD),
                         thing(2, 1, 7, (1, 2, 9, 9))]},
        {"images": images, "categories": [person],
         "annotations": [thing(1, 1, 1, (10, 20, 30, 60), keypoints=points, num_keypoints=2)]},
        {"images": images, "categories": [dog], "annotations": [
            thing(1, 1, 7, (10, 20, 30, 60), segmentation={"size": [H, W], "counts": "PPYo0"}),
            thing(2, 2, 7, (1, 1, 5, 5), segmentation=[rectangle(1, 1, 5, 5), rectangle(2, 2, 9, 9)])]},
    ]  # fmt: skip


def read_coco(data: bytes, folder: Path) -> None:
    """Read a COCO file with its pictures."""
    (folder / "instances_val.json").write_bytes(data)
    read_detection(folder / "instances_val.json")


def with_voc(folder: Path) -> None:
    """A year of VOC with two images."""
    write_voc(folder, "2007", {"trainval": ["a", "b"]}, {"a": [xml_object("dog", (11, 21, 30, 60))], "b": []})


@functools.cache
def voc_seeds() -> Sequence[bytes]:
    """An XML file and a list of images, one after the other."""
    size = f"<size><width>{W}</width><height>{H}</height><depth>3</depth></size>"
    objects = xml_object("dog", (11, 21, 30, 60)) + xml_object("cat", (1, 1, 100, 80), 1)
    head = '<?xml version="1.0" encoding="utf-8"?>'
    entity = '<!DOCTYPE a [<!ENTITY b "bbbbbbbbbb"><!ENTITY c "&b;&b;&b;&b;&b;&b;"><!ENTITY d "&c;&c;&c;&c;&c;">]>'
    outside = '<!DOCTYPE a [<!ENTITY b SYSTEM "../outside.png">]>'
    whole = f"<annotation><folder>VOC2007</folder><filename>a.jpg</filename>{size}{objects}</annotation>"
    texts = [
        whole, head + whole, entity + whole.replace("dog", "&d;"), outside + whole.replace("dog", "&b;"),
        whole.replace("<annotation>", '<annotation xmlns="urn:a">'), whole.replace("a.jpg", "../../outside.png"),
    ]  # fmt: skip
    seeds = [text.encode() + _SPLIT + b"a\nb\n" for text in texts]
    return [
        *seeds,
        whole.encode("utf-16") + _SPLIT + b"\xef\xbb\xbfa  1\nb -1\n",
        whole.encode() + _SPLIT + b"../../a\n",
    ]


def read_voc(data: bytes, folder: Path) -> None:
    """Read a VOC layout whose first annotation and list are the input."""
    xml, _, names = data.partition(_SPLIT)
    (folder / "VOC2007" / "Annotations" / "a.xml").write_bytes(xml)
    (folder / "VOC2007" / "ImageSets" / "Main" / "trainval.txt").write_bytes(names or b"a\nb\n")
    read_detection(folder)


def with_yolo(folder: Path) -> None:
    """Two images of YOLO."""
    for name in ("a.jpg", "b.jpg"):
        picture(folder / "images" / name)
    (folder / "labels").mkdir()


@functools.cache
def yolo_seeds() -> Sequence[bytes]:
    """data.yaml and a label file, one after the other."""
    box, triangle = b"0 0.3 0.5 0.4 0.25\n", b"1 0.1 0.1 0.5 0.1 0.1 0.6\n"
    return [
        b"names: [cat, dog]\ntrain: images\n" + _SPLIT + box + triangle,
        b"names:\n  0: cat\n  1: dog\nnc: 2\npath: .\ntrain: images\nval: images\n" + _SPLIT + box * 3,
        b"nc: 2\nnames: ['a', 'b']\ntrain: ../images\nval: [images, images]\n" + _SPLIT + triangle,
        b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nnames: *c\ntrain: images\n" + _SPLIT + box,
        b"names: !!python/object/apply:os.system ['true']\ntrain: images\n" + _SPLIT + box,
        b"names: [cat]\ntrain: ../../outside.png\n" + _SPLIT + b"0 nan inf -1 1e999\n",
    ]


def read_yolo(data: bytes, folder: Path) -> None:
    """Read a YOLO data set whose data.yaml and one label file are the input."""
    yaml, _, lines = data.partition(_SPLIT)
    (folder / "data.yaml").write_bytes(yaml)
    (folder / "labels" / "a.txt").write_bytes(lines)
    read_detection(folder)


_SCENE = "ulm_000000_000019"


def with_cityscapes(folder: Path) -> None:
    """One scene, whose polygons are the input."""
    write_cityscapes(folder, {_SCENE: polygons([("car", corners(10, 10, 40, 40))])})


@functools.cache
def cityscapes_trees() -> Sequence[Any]:
    """Polygons of one and of several objects."""
    car, person = ("car", corners(10, 10, 40, 40)), ("persongroup", corners(50, 10, 70, 60))
    return [polygons([car]), polygons([car, person, ("road", corners(0, 0, 99, 79)), ("car", corners(60, 60, 90, 75))])]


def read_cityscapes(data: bytes, folder: Path) -> None:
    """Read a Cityscapes layout."""
    place = folder / "gtFine" / "val" / "ulm"
    (place / f"{_SCENE}_gtFine_polygons.json").write_bytes(data)
    read_detection(folder, "val")


@functools.cache
def results_trees() -> Sequence[Any]:
    """COCO results with boxes, masks and keypoints."""
    box = {"image_id": 1, "category_id": 7, "bbox": [10, 20, 20, 40], "score": 0.9}
    return [[box, box], [box | {"segmentation": CROWD}], [box | {"keypoints": [12, 22, 2, 13, 23, 1, 0, 0, 0]}]]


def read_results(data: bytes, folder: Path) -> None:
    """Read COCO results and compare them with a small data set."""
    (folder / "results.json").write_bytes(data)
    entries = results.read_results(folder / "results.json")
    truth = _truth(str(folder))
    for kind in results.result_kinds(entries):
        results.check_results(truth, results.match_ids(entries, truth), kind)


def with_truth(folder: Path) -> None:
    """A small data set, with which the results are compared."""
    with_pictures(folder)
    (folder / "instances_val.json").write_text(json.dumps(coco_trees()[0]))


@functools.cache
def _truth(folder: str) -> Any:
    return read_detection(Path(folder) / "instances_val.json")
