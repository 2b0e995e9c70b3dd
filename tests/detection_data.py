"""Small detection data sets, written as files, and their ground truth as detections."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resim.datasets.coco import read_coco
from resim.datasets.masks import to_rle
from resim.datasets.records import DetectionData
from resim.datasets.voc import read_voc

W, H = 100, 80
BOX = (10, 20, 30, 60)  # 20 x 40 px, an area of 800
CROWD = {"size": [H, W], "counts": [10 * H + 20, 40, H * W - 10 * H - 60]}  # 40 px of column 10


def picture(path: Path, width: int = W, height: int = H) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (90, 120, 150)).save(path)


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    """A polygon, clockwise."""
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def thing(number: int, image_id: int, category_id: int, box: tuple[float, ...], **more: Any) -> dict[str, Any]:
    """A COCO annotation of a box (x0, y0, x1, y1) with the mask of a rectangle."""
    x0, y0, x1, y1 = box
    annotation = {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": (x1 - x0) * (y1 - y0),
        "iscrowd": 0,
        "segmentation": [rectangle(x0, y0, x1, y1)],
    }
    return {**annotation, **more}


def write_coco(
    folder: Path,
    annotations: list[dict[str, Any]],
    *,
    num_images: int = 2,
    categories: list[dict[str, Any]] | None = None,
    **more: Any,
) -> Path:
    """`folder/instances_val.json` without info, and images 1.png, 2.png, ... with ids from 1."""
    images = [{"id": n, "file_name": f"{n}.png", "width": W, "height": H} for n in range(1, num_images + 1)]
    for image in images:
        picture(folder / "images" / image["file_name"])
    content = {
        "images": images,
        "annotations": annotations,
        "categories": categories or [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        **more,
    }
    path = folder / "instances_val.json"
    path.write_text(json.dumps(content))
    return path


def xml_object(name: str, box: tuple[Any, ...], difficult: int = 0) -> str:
    corners = "".join(f"<{c}>{v}</{c}>" for c, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{corners}</bndbox></object>"


def write_voc(root: Path, year: str, lists: dict[str, list[str]], objects: dict[str, list[str]]) -> Path:
    """A year of VOC: `lists` of image ids by split, `objects` as XML by image id."""
    folder = root / f"VOC{year}"
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for split, ids in lists.items():
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in ids))
    for image_id, things in objects.items():
        picture(folder / "JPEGImages" / f"{image_id}.jpg")
        size = f"<size><width>{W}</width><height>{H}</height><depth>3</depth></size>"
        text = f"<annotation><filename>{image_id}.jpg</filename>{size}{''.join(things)}</annotation>"
        (folder / "Annotations" / f"{image_id}.xml").write_text(text)
    return root


def polygons(objects: list[tuple[str, list[tuple[int, int]]]]) -> dict[str, Any]:
    """The content of a Cityscapes `_gtFine_polygons.json`."""
    return {
        "imgHeight": H,
        "imgWidth": W,
        "objects": [{"label": label, "polygon": [list(point) for point in points]} for label, points in objects],
    }


def corners(x0: int, y0: int, x1: int, y1: int) -> list[tuple[int, int]]:
    """A polygon that Pillow fills from pixel x0 to x1, y0 to y1, both ends included."""
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def write_cityscapes(root: Path, scenes: dict[str, dict[str, Any]], *, split: str = "val", city: str = "ulm") -> Path:
    """Polygons by name, such as `ulm_000000_000019`, in the layout of Cityscapes."""
    for name, content in scenes.items():
        picture(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png")
        path = root / "gtFine" / split / city / f"{name}_gtFine_polygons.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return root


def truth_as_results(data: DetectionData, *, with_ignored: bool = True) -> list[dict[str, Any]]:
    """Every object as a detection with box, mask and keypoints."""
    results = []
    for record in data.records:
        for index in range(len(record)):
            if not with_ignored and (record.crowd[index] or record.difficult[index]):
                continue
            x0, y0, x1, y1 = record.boxes[index].tolist()
            entry: dict[str, Any] = {
                "image_id": record.image_id,
                "category_id": data.category_ids[int(record.labels[index]) - 1],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": 0.9,
            }
            mask = record.masks[index] if record.masks is not None else None
            if mask is not None:
                entry["segmentation"] = to_rle(mask, record.height, record.width)
            if record.keypoints is not None:
                entry["keypoints"] = record.keypoints[index].ravel().tolist()
            results.append(entry)
    return results


def detection(image_id: int | str, category_id: int, box: tuple[float, ...], score: float) -> dict[str, Any]:
    """A detected box (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = box
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "score": float(np.float64(score)),
    }


def read_annotations(folder: Path, *annotations: dict[str, Any], **more: Any) -> DetectionData:
    """Write and read a file of annotations, by default of two images and the classes cat (3) and dog (7)."""
    return read_coco(write_coco(folder, list(annotations), **more))


def rewrite_lists(path: Path, **keys: Any) -> Path:
    """Replace lists of a COCO file; None removes one."""
    content = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


def read_dogs(tmp_path: Path, *boxes: tuple[tuple[int, int, int, int], int]) -> DetectionData:
    """A VOC data set of image a with dogs: corners and `difficult` of each."""
    things = [xml_object("dog", box, difficult) for box, difficult in boxes]
    return read_voc(write_voc(tmp_path, "2007", {"trainval": ["a"]}, {"a": things}))


def perturbed_truth(data: DetectionData, seed: int = 0) -> list[dict[str, Any]]:
    """The truth, shifted, with some objects missing, some twice, some of another class, and with equal scores."""
    rng = np.random.default_rng(seed)
    results = []
    for entry in truth_as_results(data):
        for _ in range(int(rng.choice([0, 1, 1, 2]))):
            x, y, width, height = entry["bbox"]
            move = rng.normal(0, 0.12, 4) * [width, height, width, height]
            box = [x + move[0], y + move[1], max(1, width + move[2]), max(1, height + move[3])]
            other = bool(rng.random() < 0.1)
            category_id = data.category_ids[int(rng.integers(len(data.classes)))] if other else entry["category_id"]
            score = round(float(rng.random()), 2)
            results.append({**entry, "bbox": box, "category_id": category_id, "score": score})
    return results
