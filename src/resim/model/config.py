"""The configuration of the model: network, key encoder, queue and levels of the region loss. Imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from resim.fields import check_fields
from resim.regions.level import Level


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
    fpn_width: int = 256
    """Channels of every FPN map."""
    fpn_norm: bool = False
    """BatchNorm after each FPN convolution, which then has no bias."""
    conv_width: int = 128
    """Output channels of the convolution on a C level's map."""
    dim: int = 128
    """Width of the global vector."""
    queue_size: int = 65536
    """Number of keys in the queue, one for each image."""
    key_momentum: float = 0.999
    """Share of the key encoder that each step keeps."""
    temperature: float = 0.2
    """Temperature of every InfoNCE."""
    instance_weight: float = 1.0
    """Weight of the loss on whole images in the total; each level has its own."""
    group_size: int = 32
    """Images in a group, which BatchNorm normalises together and whose cells are the group's negatives; in the
    published program a process has one group."""

    def __post_init__(self) -> None:
        check_fields(self)
        names = [level.name for level in self.levels]
        if len(set(names)) != len(names):
            raise ValueError(f"levels {', '.join(names)}: name each level once")
        for name in ("fpn_width", "conv_width", "dim", "queue_size", "group_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name.replace('_', '-')} {getattr(self, name)}: must be at least 1")
        if self.queue_size > 2**26:
            raise ValueError(f"queue-size {self.queue_size}: must be at most {2**26}")
        if not self.temperature > 0:
            raise ValueError(f"temperature {self.temperature}: must be above 0")
        if self.instance_weight < 0:
            raise ValueError(f"instance-weight {self.instance_weight}: must not be negative")
        if not 0 <= self.key_momentum <= 1:
            raise ValueError(f"key-momentum {self.key_momentum}: must be in [0, 1]")
