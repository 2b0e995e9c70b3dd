"""Checkpoints as other programs write them, made of small networks."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resim import recipes
from resim.exchange.features import TOLERANCE, differences
from resim.exchange.targets import Target
from resim.model.config import ModelConfig
from resim.model.resim import ReSim
from resim.regions.level import Level
from resim.runs.checkpoints import save_checkpoint
from resim.runs.config import Recipe

ENDING: dict[Target, str] = {
    "torchvision": ".pth", "torchvision-detection": ".pth", "detectron2": ".pth", "timm": ".safetensors",
    "safetensors": ".safetensors", "hub": "",
}  # fmt: skip
PLAIN = recipes.quick()
SMALL = dataclasses.replace(
    PLAIN,
    model=dataclasses.replace(PLAIN.model, queue_size=8, group_size=4, fpn_width=256),
    optim=dataclasses.replace(PLAIN.optim, batch_size=4),
)
"""ReSim-FPN with ResNet-18: P4 and P3."""


def has_equal_maps(ours: Mapping[str, Tensor], theirs: Mapping[Any, Tensor]) -> bool:
    """Whether each of their maps is one of ours and equal to it within `TOLERANCE`."""
    largest = differences(ours, theirs)
    return set(largest) == set(theirs) and max(largest.values()) <= TOLERANCE


def small(*, norm: bool = False, levels: tuple[Level, ...] | None = None, backbone: str = "resnet18") -> Recipe:
    """The small recipe with another FPN, other levels or another backbone."""
    changed = {"fpn_norm": norm, "backbone": backbone} | ({} if levels is None else {"levels": levels})
    return dataclasses.replace(SMALL, model=dataclasses.replace(SMALL.model, **changed))


def trained(recipe: Recipe, seed: int = 0) -> ReSim:
    """A model in which no entry has its initial value: each norm has random statistics, scales and shifts."""
    return copy.deepcopy(_trained(recipe.model, seed))


@functools.lru_cache(maxsize=2)
def _trained(config: ModelConfig, seed: int) -> ReSim:
    model = ReSim(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        noise = torch.randn(value.shape, generator=generator) if value.is_floating_point() else torch.zeros(())
        if name.endswith("running_var"):
            value.copy_(0.5 + noise.abs())
        elif name.endswith(("running_mean", "bias")):
            value.copy_(0.1 * noise)
        elif name.endswith("num_batches_tracked"):
            value.fill_(7)
        elif value.dim() == 1:
            value.copy_(1 + 0.1 * noise)
    return model


def own_checkpoint(path: Path, recipe: Recipe, model: ReSim | None = None) -> dict[str, Tensor]:
    """A checkpoint of ours; returns the query encoder's state."""
    model = model or trained(recipe)
    state = {
        "resim": "0.1.0",
        "recipe": recipe.to_json(),
        "precision": "float32",
        "data": {"sources": ["/photographs/holidays"], "images": 1234, "hash": "abcdef"},
        "step": 12,
        "epoch": 3,
        "model": model.state_dict(),
        "optimizer": torch.optim.SGD(model.query.parameters(), lr=0.1).state_dict(),
    }
    save_checkpoint(path, state)
    return model.query.state_dict()


def published(model: ReSim, momentum: dict[str, Tensor] | None = None, *, fpn_first: bool = False) -> dict[str, Any]:
    """The same model as the published program saves it after 200 epochs, with its optimiser.

    `fpn_first`: the program that wrote it registers its FPN before its head.
    """
    names = list(model.query.state_dict())
    if fpn_first:
        names.sort(key=lambda name: ["backbone", "fpn", "head"].index(name.partition(".")[0]))
    state: dict[str, Tensor] = {
        "module.queue": model.queue.T.contiguous(),
        "module.queue_ptr": model.queue_position.reshape(1),
    }
    parameters: list[str] = []
    for encoder, prefix in ((model.query, "module.encoder_q."), (model.key, "module.encoder_k.")):
        values = encoder.state_dict()
        state |= {prefix + published_name(name): values[name] for name in names}
        parameters += [name for name in names if name in dict(model.query.named_parameters())]
    state = {name: value.clone() for name, value in state.items()}
    buffers = {
        index: {"momentum_buffer": momentum[name]} if momentum and index < len(parameters) // 2 else {}
        for index, name in enumerate(parameters)
    }
    optimizer = {
        "state": {index: buffer for index, buffer in buffers.items() if buffer},
        "param_groups": [{"lr": 0.03, "momentum": 0.9, "weight_decay": 1e-4, "params": list(range(len(parameters)))}],
    }
    return {"epoch": 200, "arch": model.config.backbone, "state_dict": state, "optimizer": optimizer}


def published_name(name: str) -> str:
    """`backbone.conv1.weight` -> `conv1.weight`, `head.0.bias` -> `fc.0.bias`, `fpn.lateral5.weight` ->
    `fpn_lateral5.weight`."""
    for ours, theirs in (("backbone.", ""), ("head.", "fc."), ("fpn.", "fpn_")):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise AssertionError(name)
