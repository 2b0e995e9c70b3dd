"""A small ReSim in float64, pairs of views for it, and comparisons of its state."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from resim.model.config import ModelConfig
from resim.model.resim import ReSim
from resim.regions.level import Level
from resim.views.views import Views

P4 = Level(name="P4", window=24, step=16, negatives="all")
P3 = Level(name="P3", window=16, step=12, negatives="group")
OVERLAPPING = [(0, 0, 80, 80), (10, 5, 70, 90)]  # the query's crop and the key's: top, left, height, width
DISJOINT = [(0, 0, 50, 50), (100, 100, 50, 50)]


def small(**changes: Any) -> ModelConfig:
    settings = {
        "backbone": "resnet18", "levels": (P4, P3), "fpn_width": 16, "conv_width": 16, "dim": 16,
        "queue_size": 64, "group_size": 2, "key_momentum": 0.9,
    }  # fmt: skip
    return ModelConfig(**(settings | changes))


def build(seed: int = 0, **changes: Any) -> ReSim:
    return ReSim(small(**changes), seed=seed).double()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(n: int, size: int = 64, seed: int = 0, crops: list[Any] | None = None) -> tuple[Views, Views]:
    """Query and key views of n images; `crops` has a pair for each image, or is one pair for all."""
    chosen = crops or OVERLAPPING
    each = [chosen] * n if isinstance(chosen[0], tuple) else chosen
    boxes = torch.tensor(each, dtype=torch.float64)
    return (
        Views(noise(n, 3, size, size, seed=2 * seed), boxes[:, 0]),
        Views(noise(n, 3, size, size, seed=2 * seed + 1), boxes[:, 1]),
    )


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    assert list(a) == list(b)
    return all(torch.equal(value, b[name]) for name, value in a.items())


def gradients(model: ReSim) -> dict[str, Tensor]:
    result = {}
    for name, parameter in model.query.named_parameters():
        assert parameter.grad is not None, name
        result[name] = parameter.grad
    return result


def stir(model: ReSim) -> ReSim:
    """Move the query encoder away from the key encoder."""
    with torch.no_grad():
        for index, parameter in enumerate(model.query.parameters()):
            parameter.add_(noise(*parameter.shape, seed=index) * 0.02)
    return model
