"""A detector learns by heart the few images that it is shown, which a broken piece of it would prevent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from detection_data import H, W, thing, write_coco
from resim.datasets.coco import read_coco
from resim.datasets.records import DetectionData
from resim.detection.train import train_detector
from tiny_detectors import noise, tiny, tiny_images, tiny_recipe, tiny_run

IMAGES, STEPS = 3, 90
COLOURS = {7: (220, 40, 40), 3: (40, 200, 60)}


def rectangles(folder: Path, seed: int) -> DetectionData:
    """Images of noise, each with a red rectangle on its left half and a green one, of the other class, on its right."""
    rng = np.random.default_rng(seed)
    boxes = []
    for image_id in range(1, IMAGES + 1):
        for half, category_id in enumerate(COLOURS):
            x, y = (int(v) for v in rng.integers(0, (W // 2 - 30, H - 40)))
            x += half * (W // 2)
            width, height = (int(v) for v in rng.integers(20, 30, 2))
            boxes.append((image_id, category_id, (x, y, x + width, y + height)))
    things = [thing(number, *box) for number, box in enumerate(boxes, start=1)]
    path = write_coco(folder, things, num_images=IMAGES)
    for image_id in range(1, IMAGES + 1):
        file = folder / "images" / f"{image_id}.png"
        noise(file, seed=image_id)
        image = Image.open(file).convert("RGB")
        for _, category_id, (x0, y0, x1, y1) in (box for box in boxes if box[0] == image_id):
            ImageDraw.Draw(image).rectangle((x0, y0, x1 - 1, y1 - 1), fill=COLOURS[category_id])
        image.save(file)
    return read_coco(path)


@pytest.mark.slow
def test_box_ap50_of_a_few_images_on_themselves_is_above_nine_tenths(tmp_path: Path) -> None:
    """Box AP50 is 1 for each of the seeds 0 to 9 of data and weights; the bound is 0.9.

    Box AP of the same ten: 0.93, 0.92, 0.90, 0.87, 0.88, 0.86, 0.93, 0.93, 0.92, 0.87.
    """
    data = rectangles(tmp_path / "data", seed=0)
    assert (len(data), data.num_objects) == (IMAGES, 2 * IMAGES)
    recipe = tiny_recipe(
        tiny(), tiny_images(min_sizes=(64,), flip=0.0), steps=STEPS, batch_size=IMAGES, optimizer="adamw", lr=0.001,
        drops=(STEPS * 3 // 4,), warmup_steps=10, precise_bn=4, clip_norm=10.0,
    )  # fmt: skip
    result = train_detector(recipe, tiny_run(tmp_path / "run"), data, data, show=False)
    ap50 = result.scores["bbox"]["AP50"]
    assert ap50 is not None
    assert ap50 > 0.9
