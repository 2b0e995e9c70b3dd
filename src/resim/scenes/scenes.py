"""Synthetic scenes: a data set with boxes and masks that needs no download.

Textured shapes of eight classes, 8 to 20 in a scene, overlap on a textured ground. A scene is a function of the seed,
its index and its size, and does not depend on the number of scenes.

Shapes: n visible objects, H, W the height and width of a scene.
"""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from resim.errors import UserError
from resim.reading import read_json
from resim.scenes.shapes import CLASSES, SHAPES
from resim.scenes.textures import paint, rise, value_noise

MIN_SIDE = 32  # pixels, of a scene
MIN_VISIBLE = 32  # pixels; an object with fewer visible pixels is not annotated
NUM_OBJECTS = (8, 20)
SIZES = (0.06, 0.6)  # diameters, as fractions of the shorter side of the scene
DESCRIPTION = "Synthetic scenes drawn by resim"
VERSION = "1"  # of the scenes; increases when a seed gives other pictures


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A picture with its visible objects, from the farthest to the nearest.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        boxes: (n, 4) float64, (x0, y0, x1, y1) in pixels, tight around the masks.
        labels: (n,) int64, positions in `CLASSES`.
        masks: (n, H, W) bool, the visible part of each object; they do not overlap.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray


def draw_scene(seed: int, index: int, *, width: int = 320, height: int = 240) -> Scene:
    """Draw scene number `index` of a seed; the same arguments give the same pixels.

    Args:
        seed: 0 or more.
        index: 0 or more.
        width: width of the scene, px, 32 or more.
        height: height of the scene, px, 32 or more.

    Raises:
        UserError: a number is below its smallest value.
    """
    _check(seed=(seed, 0), index=(index, 0), width=(width, MIN_SIDE), height=(height, MIN_SIDE))
    rng = np.random.default_rng([seed, index])
    side = min(width, height)
    x = np.arange(width, dtype=np.float32)[None, :] + 0.5 + np.zeros((height, 1), np.float32)
    y = np.arange(height, dtype=np.float32)[:, None] + 0.5 + np.zeros((1, width), np.float32)
    image = _ground(rng, x, y, side)
    owner = np.full((height, width), -1, dtype=np.int16)

    num_objects = int(rng.integers(NUM_OBJECTS[0], NUM_OBJECTS[1] + 1))
    labels = rng.integers(len(CLASSES), size=num_objects)
    radii = np.exp(rng.uniform(math.log(SIZES[0]), math.log(SIZES[1]), num_objects)) * side / 2
    # large objects tend to be below small ones, which would otherwise be hidden
    order = np.argsort(-radii * rng.uniform(0.5, 2, num_objects))
    labels, radii = labels[order], radii[order]
    light = rng.uniform(0, 2 * math.pi)
    for number, (label, radius) in enumerate(zip(labels.tolist(), radii.tolist(), strict=True)):
        _draw_object(rng, image, owner, x, y, number=number, label=label, radius=radius, light=light)

    across = (math.cos(light) * (x - width / 2) + math.sin(light) * (y - height / 2)) / math.hypot(width, height)
    image *= (1 + rng.uniform(0, 0.5) * across)[..., None]
    image += rng.uniform(0.005, 0.025) * rng.standard_normal(image.shape, dtype=np.float32)

    visible = np.flatnonzero(np.bincount(owner[owner >= 0], minlength=num_objects) >= MIN_VISIBLE)
    masks = owner == visible[:, None, None]
    boxes = np.array([_tight_box(mask) for mask in masks], dtype=np.float64).reshape(-1, 4)
    pixels = np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
    return Scene(image=pixels, boxes=boxes, labels=labels[visible], masks=masks)


def _ground(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, side: int) -> np.ndarray:
    """Two textures (H, W, 3) with an irregular border between them, and uneven light."""
    one, other = (paint(rng, x, y, size=rng.uniform(0.3, 1) * side, contrast=rng.uniform(0.15, 0.45)) for _ in range(2))
    x, y = x / side, y / side
    coarse, fine, finest = (value_noise(rng, frequency * x, frequency * y) for frequency in (1.5, 5, 16))
    border = 0.7 * coarse + 0.22 * fine + 0.08 * finest - rng.uniform(0.3, 0.7)
    ground = one + rise(border, 0.03)[..., None] * (other - one)
    return ground * (0.82 + 0.35 * fine)[..., None]


def _draw_object(
    rng: np.random.Generator,
    image: np.ndarray,
    owner: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    *,
    number: int,
    label: int,
    radius: float,
    light: float,
) -> None:
    """Paint one object at a random position over `image`, and its number over `owner`."""
    height, width = owner.shape
    centre_x, centre_y, turn = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0, 2 * math.pi)
    reach = 1.3 * radius + 2  # the shadow falls outside the object
    rows = slice(max(0, math.floor(centre_y - reach)), math.ceil(centre_y + reach))
    columns = slice(max(0, math.floor(centre_x - reach)), math.ceil(centre_x + reach))
    east, south = x[rows, columns] - centre_x, y[rows, columns] - centre_y
    patch, shape = image[rows, columns], SHAPES[CLASSES[label]]
    cos, sin = math.cos(turn), math.sin(turn)

    fall_x, fall_y = -0.12 * radius * math.cos(light), -0.12 * radius * math.sin(light)
    shadow_x, shadow_y = (east - fall_x) / radius, (south - fall_y) / radius
    shadow = shape(cos * shadow_x + sin * shadow_y, cos * shadow_y - sin * shadow_x)
    patch *= 1 - 0.5 * rise(-shadow, 0.2)[..., None]

    u, v = cos * east + sin * south, cos * south - sin * east
    distance = radius * shape(u / radius, v / radius)
    colour = paint(rng, u, v, size=2 * radius, contrast=rng.uniform(0.35, 0.8))
    shade = 1 + 0.2 * (math.cos(light) * east + math.sin(light) * south) / radius
    shade -= rng.uniform(0.1, 0.5) * np.exp(np.minimum(distance, 0) / (0.1 * radius))
    cover = rise(-distance, 1)[..., None]
    patch += cover * (colour * shade[..., None] - patch)
    owner[rows, columns][distance < 0] = number


def _tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def write_scenes(
    out: Path, count: int, *, seed: int = 0, width: int = 320, height: int = 240, quality: int = 90
) -> Path:
    """Write `count` scenes as a COCO data set: `out/images/000000.jpg`, ... and `out/instances.json`.

    The same arguments give the same bytes, with the same versions of NumPy and Pillow. A folder that already contains
    these scenes is not changed, and an interrupted one is written again. Only one process may write to a folder.

    Args:
        out: a folder that does not exist, is empty, or was written by this function with the same arguments.
        count: number of scenes, 1 or more.
        seed: 0 or more.
        width: width of a scene, px, 32 or more.
        height: height of a scene, px, 32 or more.
        quality: quality of the JPEG files, 1 to 95.

    Returns:
        The path of `out/instances.json`, with boxes (x, y, width, height), masks as compressed RLE, categories from 1
        in the order of `CLASSES`, and the index of each image as its id.

    Raises:
        UserError: a number is out of its range, or `out` contains anything else.
    """
    _check(count=(count, 1), seed=(seed, 0), width=(width, MIN_SIDE), height=(height, MIN_SIDE))
    if not 1 <= quality <= 95:
        raise UserError(f"quality {quality}: must be 1 to 95")
    settings = {"count": count, "seed": seed, "width": width, "height": height, "quality": quality}
    info = {"description": DESCRIPTION, "version": VERSION, **settings}
    path, unfinished = out / "instances.json", out / "instances.json.partial"
    if path.is_file() and _info(path) == info:
        return path
    if out.exists() and not unfinished.is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} contains {_content(path)}, not {_title(info)}: name a new folder, or remove this one")

    images = out / "images"
    try:
        images.mkdir(parents=True, exist_ok=True)
        unfinished.touch()  # marks the folder until instances.json exists
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}): name another folder") from error
    for left_over in images.glob("[0-9]*.jpg"):
        left_over.unlink()
    records, annotations = [], []
    for index in range(count):
        scene = draw_scene(seed, index, width=width, height=height)
        name = f"{index:06d}.jpg"
        content = io.BytesIO()  # Pillow ignores that a full disk takes only a part of what it writes to a file
        Image.fromarray(scene.image).save(content, "jpeg", quality=quality)
        _write(images / name, content.getvalue())
        records.append({"id": index, "file_name": name, "width": width, "height": height})
        annotations += _annotations(scene, image_id=index, first_id=len(annotations) + 1)
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)]
    labels = {"info": info, "licenses": [], "images": records, "annotations": annotations}
    _write(unfinished, json.dumps({**labels, "categories": categories}).encode())
    unfinished.replace(path)
    return path


def _write(path: Path, content: bytes) -> None:
    """Write a file; the error of a full disk does not name it by itself."""
    try:
        path.write_bytes(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None


def _annotations(scene: Scene, *, image_id: int, first_id: int) -> list[dict[str, Any]]:
    annotations = []
    for number, mask in enumerate(scene.masks):
        x0, y0, x1, y1 = scene.boxes[number].tolist()
        # bytes, in spite of pycocotools' type annotations; JSON needs text
        counts = cast(bytes, rle.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"])
        annotation = {
            "id": first_id + number,
            "image_id": image_id,
            "category_id": int(scene.labels[number]) + 1,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": int(mask.sum()),
            "iscrowd": 0,
            "segmentation": {"size": list(mask.shape), "counts": counts.decode("ascii")},
        }
        annotations.append(annotation)
    return annotations


def _info(path: Path) -> dict[str, Any]:
    """The `info` of instances.json; empty if there is no such file or this package has not written it."""
    try:
        info = read_json(path)["info"]
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return info if isinstance(info, dict) and info.get("description") == DESCRIPTION else {}


def _content(path: Path) -> str:
    info = _info(path)
    return _title(info) if info else "other files"


def _title(info: dict[str, Any]) -> str:
    size = f"{info.get('width')}x{info.get('height')}"
    return (
        f"{info.get('count')} scenes of seed {info.get('seed')}, {size}, "
        f"JPEG quality {info.get('quality')}, drawing {info.get('version')}"
    )


def _check(**values: tuple[int, int]) -> None:
    for name, (value, least) in values.items():
        if value < least:
            raise UserError(f"{name} {value}: must be {least} or more")
