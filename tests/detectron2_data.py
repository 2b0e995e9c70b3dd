"""A few photographs in the layout that Detectron2 expects of COCO, VOC, keypoints and dense pose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_POINTS = 30


def lay_out(photographs: Path, folder: Path, images: int = 4) -> Path:
    """Fill `folder` from ../shared/data; returns it, for DETECTRON2_DATASETS. FVCORE_CACHE is `folder / "cache"`."""
    source = json.loads((photographs / "coco543" / "instances_train.json").read_text())
    people = {box["image_id"] for box in source["annotations"] if box["category_id"] == 1 and box["area"] > 4000}
    chosen = [image for image in source["images"] if image["id"] in people][:images]
    ids = {image["id"] for image in chosen}
    boxes = [box | {"iscrowd": 0} for box in source["annotations"] if box["image_id"] in ids]
    persons = [box for box in boxes if box["category_id"] == 1]
    person = [{"id": 1, "name": "person", "supercategory": "person"}]
    annotations = folder / "coco" / "annotations"
    annotations.mkdir(parents=True)
    for year in ("train2017", "val2017", "train2014", "val2014"):
        (folder / "coco" / year).symlink_to(photographs / "coco543" / "images")
    for year in ("train2017", "val2017"):
        _write(annotations / f"instances_{year}.json", chosen, boxes, source["categories"])
        _write(annotations / f"person_keypoints_{year}.json", chosen, [_keypoints(box) for box in persons], person)
    for part in ("train2014", "valminusminival2014", "minival2014"):
        number = 0 if part == "train2014" else 10_000_000
        dense = [_dense(box, number + index) for index, box in enumerate(persons, start=1)]
        _write(annotations / f"densepose_{part}.json", chosen, dense, person)
    for year in ("VOC2007", "VOC2012"):
        (folder / year).symlink_to(photographs / "voc100" / "VOCdevkit" / "VOC2007")
    _symmetries(folder / "cache" / "densepose" / "data" / "UV_symmetry_transforms.mat")
    return folder


def _write(path: Path, images: list[Any], annotations: list[Any], categories: list[Any]) -> None:
    content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))


def _keypoints(box: dict[str, Any]) -> dict[str, Any]:
    """The 17 points of a person, made up, all visible."""
    x, y, width, height = box["bbox"]
    spots = np.random.default_rng(box["id"]).uniform(0.1, 0.9, (17, 2))
    points = [[x + u * width, y + v * height, 2] for u, v in spots]
    return box | {"keypoints": [value for point in points for value in point], "num_keypoints": 17}


def _dense(box: dict[str, Any], number: int) -> dict[str, Any]:
    """Dense pose in its true form, made up: points in a box of 256 x 256, their parts and surface coordinates, and a
    mask for each of 14 parts, of which one covers the middle."""
    from pycocotools import mask as masks

    rng = np.random.default_rng(number)
    middle = np.zeros((256, 256), dtype=np.uint8, order="F")
    middle[40:216, 40:216] = 1
    encoded: Any = masks.encode(middle)
    part = {"size": [256, 256], "counts": encoded["counts"].decode()}
    spots = {name: rng.uniform(45, 210, _POINTS).round(2).tolist() for name in ("dp_x", "dp_y")}
    surface = {name: rng.uniform(0, 1, _POINTS).round(4).tolist() for name in ("dp_U", "dp_V")}
    parts = [float(value) for value in rng.integers(1, 25, _POINTS)]
    return box | {"id": number, **spots, **surface, "dp_I": parts, "dp_masks": [part, *([[]] * 13)]}


def lay_out_cityscapes(folder: Path, images: int = 2) -> Path:
    """Street scenes of noise with a car and a person each, in the layout of Cityscapes."""
    for part in ("train", "val"):
        streets, truths = (folder / "cityscapes" / kind / part / "city" for kind in ("leftImg8bit", "gtFine"))
        streets.mkdir(parents=True)
        truths.mkdir(parents=True)
        for index in range(images):
            stem = f"city_00000{index}_000019"
            noise = np.random.default_rng(index).integers(0, 255, (128, 256, 3), dtype=np.uint8)
            Image.fromarray(noise).save(streets / f"{stem}_leftImg8bit.png")
            car, person = [[20, 40], [120, 40], [120, 100], [20, 100]], [[160, 30], [200, 30], [200, 120], [160, 120]]
            objects = [{"label": "car", "polygon": car}, {"label": "person", "polygon": person}]
            content = {"imgHeight": 128, "imgWidth": 256, "objects": objects}
            (truths / f"{stem}_gtFine_polygons.json").write_text(json.dumps(content))
            for kind in ("instanceIds", "labelIds"):
                Image.fromarray(np.zeros((128, 256), dtype=np.uint8)).save(truths / f"{stem}_gtFine_{kind}.png")
    return folder


def _symmetries(path: Path) -> None:
    """Made-up surface coordinates of a mirrored person for each part, in the layout of the real file."""
    from scipy.io import savemat

    path.parent.mkdir(parents=True)
    grid = np.linspace(0, 1, 256)
    tables = {"U_transforms": np.empty((1, 24), dtype=object), "V_transforms": np.empty((1, 24), dtype=object)}
    for part in range(24):
        tables["V_transforms"][0, part], tables["U_transforms"][0, part] = np.meshgrid(1 - grid, grid)
    savemat(path, tables)
