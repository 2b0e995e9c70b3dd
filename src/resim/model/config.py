"""The configuration of the model: network, key encoder, queue and levels of the region loss. Imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from resim.fields import AtLeast, AtMost, Positive, Share, check_fields
from resim.regions.level import Level

WIDEST = 2**16
"""The largest number of channels, so that the sizes of a network fit into 64 bits."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network, its key encoder and queue, and the levels of the region loss.

    Source: Xiao et al., ICCV 2021, section 4.1; He et al., arXiv 1911.05722; Chen et al., arXiv 2003.04297.
    """

    backbone: str = "resnet50"
    """torchvision ResNet or ResNeXt by name, or timm/NAME (pip install '.[timm]' in resim's clone)."""
    levels: tuple[Level, ...] = (
        Level(name="P4", window=48, step=32, negatives="all"),
        Level(name="P3", window=32, step=24, negatives="group"),
    )
    """Levels of the region loss, such as P4:window=48,step=32,negatives=all (px); none: MoCo v2."""
    fpn_width: Annotated[int, AtLeast(1), AtMost(WIDEST)] = 256
    """Channels of every FPN map."""
    fpn_norm: bool = False
    """BatchNorm after each FPN convolution, which then has no bias."""
    conv_width: Annotated[int, AtLeast(1), AtMost(WIDEST)] = 128
    """Output channels of the convolution on a C level's map."""
    dim: Annotated[int, AtLeast(1), AtMost(WIDEST)] = 128
    """Width of the global vector."""
    queue_size: Annotated[int, AtLeast(1), AtMost(2**26)] = 65536
    """Number of keys in the queue, one for each image."""
    key_momentum: Share = 0.999
    """Share of the key encoder that each step keeps."""
    temperature: Positive = 0.2
    """Temperature of every InfoNCE."""
    instance_weight: Annotated[float, AtLeast(0)] = 1.0
    """Weight of the loss on whole images in the total; each level has its own."""
    group_size: Annotated[int, AtLeast(1)] = 32
    """Images in a group, which BatchNorm normalises together and whose cells are the group's negatives; in the
    published program a process has one group."""

    def __post_init__(self) -> None:
        check_fields(self)
        names = [level.name for level in self.levels]
        if len(set(names)) != len(names):
            raise ValueError(f"levels {', '.join(names)}: name each level once")
