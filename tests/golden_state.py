"""The network of the golden data (golden/README.md) and its initial weights."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

from resim.model.encoder import ModelConfig


def random_values(name: str, seed: int, shape: tuple[int, ...] | list[int]) -> np.ndarray:
    """Standard normal values that depend on the name and the seed only."""
    generator = np.random.RandomState((zlib.crc32(name.encode()) + seed) & 0xFFFFFFFF)
    return generator.standard_normal(shape)


def published_state(shapes: dict[str, list[int]], seed: int) -> dict[str, Tensor]:
    """The golden state dict under the published names."""
    state = {}
    for full_name, shape in shapes.items():
        name = full_name.removeprefix("module.")
        if name.endswith(("queue_ptr", "num_batches_tracked")):
            value = np.zeros(shape, dtype=np.int64)
        elif name.endswith("running_mean"):
            value = np.zeros(shape)
        elif name.endswith("running_var"):
            value = np.ones(shape)
        else:
            value = random_values(name, seed, shape)
            if name == "queue":
                value /= np.linalg.norm(value, axis=0, keepdims=True)
            elif name.endswith(".bias"):
                value *= 0.1
            elif len(shape) == 1:
                value = 1 + 0.1 * value
            else:
                value *= np.sqrt(2 / np.prod(shape[1:]))
        state[full_name] = torch.as_tensor(value)
    return state


def golden_config(fpn_norm: bool) -> ModelConfig:
    """The configuration of the golden step."""
    return ModelConfig(fpn_norm=fpn_norm, queue_size=256)
