"""The methods of a study, as recipes that differ in the method only.

Backbone, views, batch, queue, optimiser, seed and number of view pairs are the same for all methods.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from resim.model.config import ModelConfig
from resim.regions.level import Level
from resim.runs.config import OptimConfig, Recipe
from resim.views.crops import ViewsConfig

P4 = Level(name="P4", window=48, step=16, negatives="all")
P3 = Level(name="P3", window=32, step=16, negatives="group")
C4 = Level(name="C4", window=48, step=16, negatives="all", closed=True)
FPN_WIDTH = 128
GROUP = 32  # images that share BatchNorm's statistics
LEVELS = {"moco-v2": (), "resim-c4": (C4,), "resim-fpn": (P4, P3)}
ORDER = ("untrained", *LEVELS)  # order of the rows of tables

ADAMW = OptimConfig(
    optimizer="adamw", lr=1e-3, weight_decay=0.05, betas=(0.9, 0.95), decay_norms=False, clip_norm=10.0,
    schedule="cosine-per-step",
)  # fmt: skip
SGD = OptimConfig()  # as published
WARMUP = 0.05  # of the epochs, for AdamW


@dataclass(frozen=True)
class Size:
    """Backbone, view and batch that fit the hardware."""

    backbone: str
    image_size: int  # px
    batch_size: int
    largest_queue: int
    blur_sigma: tuple[float, float]


SIZES = {
    "cpu": Size("resnet18", 96, 64, 4096, (0.1, 1.0)),
    "gpu": Size("resnet50", 224, 256, 65536, (0.1, 2.0)),
}


def make_recipe(method: str, size: Size, *, images: int, pairs: int, seed: int) -> Recipe:
    """The recipe of a method.

    Args:
        method: a key of `LEVELS`; with the suffix `-sgd` it is optimised as published. `+SETTING=VALUE` behind it, once
            or more often, changes one setting by its option's name: `resim-fpn+queue-size=256`,
            `resim-fpn+crop-area=0.4,1`, and `resim-fpn+levels=P4` keeps only that level. `+variant=NAME` changes the
            program (variants.py), not the recipe.
        size: backbone, view and batch.
        images: size of the data set; the queue is the largest power of two that does not exceed it.
        pairs: view pairs to train on, rounded to whole epochs.
        seed: of all random choices.

    Raises:
        KeyError: no such method or setting.
    """
    base, *settings = method.split("+")
    name, sgd, _ = base.partition("-sgd")
    epochs = max(1, round(pairs / (images // size.batch_size * size.batch_size)))
    if sgd:
        optim = dataclasses.replace(SGD, batch_size=size.batch_size, epochs=epochs, seed=seed)
    else:
        optim = dataclasses.replace(
            ADAMW, batch_size=size.batch_size, epochs=epochs, seed=seed, warmup_epochs=WARMUP * epochs
        )
    recipe = Recipe(
        name=method,
        model=ModelConfig(
            backbone=size.backbone,
            levels=LEVELS[name],
            fpn_width=FPN_WIDTH,
            queue_size=min(size.largest_queue, 2 ** (images.bit_length() - 1)),
            key_momentum=0.99,
            group_size=GROUP,
        ),
        views=ViewsConfig(image_size=size.image_size, blur_sigma=size.blur_sigma),
        optim=optim,
    )
    for setting in settings:
        if not setting.startswith("variant="):
            recipe = _with_setting(recipe, *setting.split("=", 1))
    return recipe


def _with_setting(recipe: Recipe, option: str, value: str) -> Recipe:
    """The recipe with one setting changed: numbers, words, true and false, several values with commas between them."""
    content, field = recipe.to_json(), option.replace("-", "_")
    part = next((part for part in content.values() if isinstance(part, dict) and field in part), None)
    if part is None:
        raise KeyError(f"--{option}: no recipe has this setting")
    if field == "levels":
        part[field] = [level for level in part[field] if level.partition(":")[0] in value.split(",")]
    else:
        values = [json.loads(word) if word[:1] in "-.0123456789tf" else word for word in value.split(",")]
        part[field] = values if isinstance(part[field], list | tuple) else values[0]
    return Recipe.from_json(content)
