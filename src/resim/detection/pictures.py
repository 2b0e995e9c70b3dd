"""Detections on their images: boxes, masks and keypoints, next to the truth.

Shapes: n objects, H x W pixels of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as rle

from resim.datasets.masks import decode_masks
from resim.datasets.records import DetectionData, Record
from resim.draw.primitives import PALETTE, Colour, drawn_box, outline, tag
from resim.draw.sheet import Block, ColumnHeading, Panel, draw_sheet, fit

MASK_SHARE = 0.45  # of a mask's colour in the pixels that it covers
SMALLEST_WIDTH = 480  # px: smaller images are enlarged, so that tags can be read
_MOST_ENLARGED_PX = 4096  # height to which a narrow image is enlarged at most
_MOST_PX = 65_500  # of a side of a JPEG
SMALL_TAG_PX = 13  # height of a small object's tag
SHOWN = 0.5  # score from which a detection is drawn


def draw_results(
    pixels: np.ndarray,
    results: Sequence[dict[str, Any]],
    names: dict[int, str],
    *,
    threshold: float = SHOWN,
    panel: bool = False,
) -> Image.Image:
    """An image with its detections, the best on top; one colour a class.

    Args:
        pixels: (H, W, 3) uint8.
        results: entries of COCO results, of this image.
        names: of classes, by category id.
        threshold: detections with a lower score are not drawn.
        panel: in the size of a sheet's panels; otherwise in the image's size, or enlarged to `SMALLEST_WIDTH`.
    """
    shown = sorted((r for r in results if r["score"] >= threshold), key=lambda result: result["score"])
    objects = []
    for result in shown:
        x, y, width, height = result["bbox"]
        code: Any = result.get("segmentation")
        mask = None if code is None else np.asarray(rle.decode(code)).astype(bool)
        points = result.get("keypoints")
        label = f"{names[result['category_id']]} {100 * result['score']:.0f}"
        objects.append((np.array([x, y, x + width, y + height]), mask, points, label, result["category_id"], False))
    return _draw(pixels, objects, list(names), panel=panel)


def draw_truth(pixels: np.ndarray, record: Record, data: DetectionData, *, panel: bool = False) -> Image.Image:
    """An image with its annotated objects; dashed: crowd regions and objects marked difficult. `panel` as above."""
    masks = decode_masks(record) if record.masks is not None else None
    objects = []
    for index in range(len(record)):
        mask = masks[index] if masks is not None and record.has_mask[index] else None
        points = None if record.keypoints is None else record.keypoints[index].ravel().tolist()
        label = int(record.labels[index])
        is_dashed = bool(record.crowd[index] or record.difficult[index])
        objects.append(
            (record.boxes[index], mask, points, data.classes[label - 1], data.category_ids[label - 1], is_dashed)
        )
    return _draw(pixels, objects, list(data.category_ids), panel=panel)


def detection_sheet(
    data: DetectionData,
    pictures: Sequence[tuple[Record, np.ndarray]],
    columns: Sequence[tuple[str, str, Sequence[dict[str, Any]]]],
    *,
    title: str,
    threshold: float = SHOWN,
) -> Image.Image:
    """The same images with the truth and with each model's detections.

    Args:
        data: the truth.
        pictures: records with their pixels (H, W, 3) uint8.
        columns: of each model its name, a line about it, and its results.
        title: one line.
        threshold: score from which detections are drawn.
    """
    names = dict(zip(data.category_ids, data.classes, strict=True))
    rows = []
    for record, pixels in pictures:
        crowd = int((record.crowd | record.difficult).sum())
        caption = _count(len(record), "object") + (f", {crowd} of them not scored" if crowd else "")
        row = [Panel(picture=draw_truth(pixels, record, data, panel=True), caption=caption)]
        for _, _, results in columns:
            of_image = [result for result in results if result["image_id"] == record.image_id]
            drawn = draw_results(pixels, of_image, names, threshold=threshold, panel=True)
            count = sum(result["score"] >= threshold for result in of_image)
            row.append(Panel(picture=drawn, caption=_count(count, "detection")))
        rows.append(tuple(row))
    headings = (
        ColumnHeading(name="truth", note=f"{data.source}"[-60:]),
        *(ColumnHeading(name=name, note=note) for name, note, _ in columns),
    )
    shared = f"; beyond {len(PALETTE)} classes some share one" if len(names) > len(PALETTE) else ""
    note = (
        f"Detections with a score of {threshold:g} or more; the number behind a class is its score in percent. "
        f"A class keeps its colour{shared}. "
        "Dashed: crowd regions and objects marked difficult, which are not scored."
    )
    return draw_sheet(title, note, [Block(title="", headings=headings, rows=tuple(rows))])


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


Drawn = tuple[np.ndarray, np.ndarray | None, Sequence[float] | None, str, int, bool]
"""Box (4,), mask (H, W), keypoints (x, y, v, ...), label, category id, whether its outline is dashed."""


def _draw(pixels: np.ndarray, objects: Sequence[Drawn], categories: Sequence[int], *, panel: bool) -> Image.Image:
    canvas = pixels.astype(np.float32)
    colours = {number: PALETTE[place % len(PALETTE)] for place, number in enumerate(categories)}
    for _, mask, _, _, category, _ in objects:
        if mask is not None:
            canvas[mask] = (1 - MASK_SHARE) * canvas[mask] + MASK_SHARE * np.array(colours[category])
    image = Image.fromarray(canvas.round().astype(np.uint8))
    if panel:
        image, factor = fit(image)
    else:
        width = min(max(image.width, SMALLEST_WIDTH), _MOST_PX)
        height = min(max(image.height, _MOST_ENLARGED_PX), _MOST_PX)
        image, factor = fit(image, width, max_aspect=height / width)
    draw = ImageDraw.Draw(image)
    for box, _, points, _, category, is_dashed in objects:
        outline(draw, drawn_box(box, factor), colours[category], dashed=is_dashed)
        _dots(draw, points, colours[category], factor)
    for box, _, _, label, category, _ in objects:
        x0, y0, x1, y1 = drawn_box(box, factor)
        up = SMALL_TAG_PX if min(x1 - x0, y1 - y0) < 40 else 0  # above a small object, not over it
        tag(image, (x0, y0 - up, x1, y1 - up), label, colours[category])
    return image


def _dots(draw: ImageDraw.ImageDraw, points: Sequence[float] | None, colour: Colour, factor: float) -> None:
    for x, y, visibility in zip(*(iter(points or ()),) * 3, strict=True):
        if visibility > 0:
            centre = ((x + 0.5) * factor, (y + 0.5) * factor)
            draw.ellipse([c + d for d in (-3, 3) for c in centre], fill=colour, outline=(0, 0, 0))
