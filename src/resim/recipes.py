"""Named recipes. Each function returns a config; every field can be set on the command line."""

from __future__ import annotations

from collections.abc import Callable

from resim.model.config import ModelConfig
from resim.regions.level import Level
from resim.runs.config import OptimConfig, Recipe
from resim.views.config import ViewsConfig


def resim_fpn() -> Recipe:
    """ReSim-FPN as published: ResNet-50 and its FPN, 200 epochs of ImageNet, 8 groups of 32 images a step."""
    return Recipe(name="resim-fpn")


def resim_c4() -> Recipe:
    """ReSim-C4 as we read the paper (no program is published): windows on C4 through one 3 x 3 convolution, no FPN."""
    level = Level(name="C4", window=48, step=16, negatives="all", closed=True)
    return Recipe(name="resim-c4", model=ModelConfig(levels=(level,)))


def moco_v2() -> Recipe:
    """The MoCo v2 baseline: the global loss alone, a random flip for each view, blur after jitter."""
    return Recipe(
        name="moco-v2",
        model=ModelConfig(levels=()),
        views=ViewsConfig(flip="independent", photometric_order="jitter-gray-blur"),
    )


def quick() -> Recipe:
    """ReSim-FPN in minutes on a CPU: ResNet-18 at 128 px, for a few hundred images or more."""
    levels = (
        Level(name="P4", window=48, step=16, negatives="all"),
        Level(name="P3", window=32, step=16, negatives="group"),
    )
    return Recipe(
        name="quick",
        model=ModelConfig(
            backbone="resnet18", levels=levels, fpn_width=128, queue_size=256, key_momentum=0.99, group_size=32
        ),
        views=ViewsConfig(image_size=128, blur_sigma=(0.1, 1.0)),
        optim=OptimConfig(epochs=10, batch_size=32),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "resim-fpn": resim_fpn,
    "resim-c4": resim_c4,
    "moco-v2": moco_v2,
    "quick": quick,
}
