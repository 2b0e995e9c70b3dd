"""A detector learns by heart the few images that it is shown, which a broken piece of it would prevent."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from resim.detection.coco import read_coco
from resim.detection.config import DetectRecipe, DetectRun
from resim.detection.recipes import quick
from resim.detection.records import DetectionData
from resim.detection.train import train_detector

NUM_IMAGES, SMALLEST = 8, 32.0  # px at 256 px of the shorter side


def eight(shared: Path) -> DetectionData:
    """The first eight photographs all of whose objects are of some size."""
    folder = shared / "data" / "coco543"
    data = read_coco(folder / "instances_train.json", folder / "images", check_images=False)
    sides = [record.boxes[:, 2:] - record.boxes[:, :2] for record in data.records]
    chosen = [
        record for record, side in zip(data.records, sides, strict=True) if len(record) > 1 and side.min() >= SMALLEST
    ]
    return dataclasses.replace(data, records=tuple(chosen[:NUM_IMAGES]))


def small(steps: int, **detector: object) -> DetectRecipe:
    """The quick protocol on a small backbone, for images that are always seen alike."""
    recipe = quick()
    return dataclasses.replace(
        recipe,
        detector=dataclasses.replace(recipe.detector, backbone="resnet18", fpn_width=64, **detector),  # type: ignore[arg-type]
        images=dataclasses.replace(recipe.images, min_sizes=(160,), max_size=256, test_size=160, flip=0.0),
        tune=dataclasses.replace(
            recipe.tune, steps=steps, batch_size=4, drops=(steps * 3 // 4,), warmup_steps=20, precise_bn=4
        ),
    )


@pytest.mark.slow
def test_box_ap50_of_eight_images_on_themselves_is_above_nine_tenths(shared: Path, tmp_path: Path) -> None:
    data = eight(shared)
    run = DetectRun(out=tmp_path / "run", device="cpu", workers=1)
    found = train_detector(small(240), run, data, data, show=False)
    ap50 = found.scores["bbox"]["AP50"]
    assert ap50 is not None
    assert ap50 > 0.9
