"""Detectors and data sets small enough for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from detection_data import H, W, thing, write_coco
from resim.datasets.coco import read_coco
from resim.datasets.records import DetectionData
from resim.detection.config import DetectorConfig, DetectRecipe, DetectRun, ImagesConfig, TuneConfig

SIZES = (64, 80)  # px, shorter sides in training


def tiny(**fields: Any) -> DetectorConfig:
    """A ResNet-18 with a narrow FPN and few regions."""
    small: dict[str, Any] = {
        "backbone": "resnet18", "fpn_width": 16, "rpn_regions": 16, "box_regions": 16, "proposals_train": 30,
        "proposals_test": 20, "anchor_sizes": (8, 16, 32, 64, 128),
    }  # fmt: skip
    return DetectorConfig(**(small | fields))


def tiny_images(**fields: Any) -> ImagesConfig:
    """Images of 64 and 80 px."""
    return ImagesConfig(**({"min_sizes": SIZES, "max_size": 128, "test_size": 64} | fields))


def tiny_recipe(
    detector: DetectorConfig | None = None, images: ImagesConfig | None = None, **tune: Any
) -> DetectRecipe:
    """Three steps of two images."""
    settings: dict[str, Any] = {"steps": 3, "batch_size": 2, "drops": (), "warmup_steps": 0, "lr": 0.01}
    return DetectRecipe(
        name="tiny", detector=detector or tiny(), images=images or tiny_images(), tune=TuneConfig(**(settings | tune))
    )


def tiny_run(out: Path, **fields: Any) -> DetectRun:
    """On the CPU, without loader processes."""
    settings: dict[str, Any] = {"device": "cpu", "precision": "float32", "workers": 0, "log_every": 1}
    return DetectRun(out=out, **(settings | fields))


def noise(path: Path, seed: int, width: int = W, height: int = H) -> None:
    """A picture of coloured noise, coarse enough for a detector to see."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(path)


def write_things(folder: Path, num_images: int = 4, **more: Any) -> Path:
    """A COCO file of noise with two objects an image, with masks, of two classes (ids 7 and 3)."""
    rng = np.random.default_rng(5)
    annotations = []
    for image_id in range(1, num_images + 1):
        for category_id in (7, 3):
            x, y = (int(v) for v in rng.integers(0, 30, 2))
            width, height = (int(v) for v in rng.integers(20, 40, 2))
            box = (x, y, x + width, y + height)
            annotations.append(thing(len(annotations) + 1, image_id, category_id, box))
    path = write_coco(folder, annotations, num_images=num_images, **more)
    for image_id in range(1, num_images + 1):
        noise(folder / "images" / f"{image_id}.png", seed=image_id)
    return path


def things(folder: Path, num_images: int = 4) -> DetectionData:
    """The same, read."""
    return read_coco(write_things(folder, num_images))


PERSON = {"id": 1, "name": "person", "keypoints": ["nose", "left_eye", "right_eye"]}


def write_people(folder: Path, num_images: int = 2) -> Path:
    """A COCO file of noise with one person an image, of three keypoints."""
    annotations = [
        thing(n, n, 1, (10, 10, 60, 70), keypoints=[30, 20, 2, 40, 15, 1, 0, 0, 0], num_keypoints=2)
        for n in range(1, num_images + 1)
    ]
    path = write_coco(folder, annotations, num_images=num_images, categories=[PERSON])
    for image_id in range(1, num_images + 1):
        noise(folder / "images" / f"{image_id}.png", seed=image_id)
    return path


@torch.no_grad()
def randomise_norms(module: nn.Module, seed: int = 0) -> None:
    """Weights, biases and running statistics of every BatchNorm, fixed ones too, become random numbers."""
    generator = torch.Generator().manual_seed(seed)
    for child in module.modules():
        mean, variance = (getattr(child, f"running_{which}", None) for which in ("mean", "var"))
        if isinstance(mean, Tensor) and isinstance(variance, Tensor):
            weight: Any = child.weight
            bias: Any = child.bias
            mean.copy_(0.3 * torch.randn(mean.shape, generator=generator))
            variance.copy_(0.5 + torch.rand(variance.shape, generator=generator))
            weight.copy_(0.5 + 0.5 * torch.rand(weight.shape, generator=generator))
            bias.copy_(0.3 * torch.randn(bias.shape, generator=generator))
