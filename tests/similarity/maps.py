"""Random images and feature maps."""

from __future__ import annotations

import numpy as np
import torch

from resim.similarity.feature_maps import FeatureMap, Photograph, stride_of


def photograph(width: int, height: int) -> Photograph:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Photograph("image.png", pixels, (width, height))


def random_map(level: str, width: int, height: int, *, channels: int = 8, seed: int = 0) -> FeatureMap:
    stride = stride_of(level)
    generator = torch.Generator().manual_seed(seed)
    shape = (channels, -(-height // stride), -(-width // stride))
    return FeatureMap(level, torch.randn(shape, generator=generator), stride)
