"""What is trained: a backbone with a global head and, for every level of the region loss, a map to look at.

Shapes: N images, C channels, a level's map of H x W cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from resim.fields import check_fields
from resim.model.backbone import STAGES, build_backbone
from resim.model.fused.weight_grad import TiledConv2d
from resim.model.grouped_norm import group_norms
from resim.model.relu import quicken_relus
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
    """Channels of the convolution through which a C level is seen."""
    dim: int = 128
    """Width of the global vector."""
    queue_size: int = 65536
    """Keys that the queue holds, images."""
    key_momentum: float = 0.999
    """Share of the key encoder that stays at each step."""
    temperature: float = 0.2
    """Temperature of every InfoNCE."""
    group_size: int = 32
    """Images that BatchNorm and the group's negatives see together (a process of the published program)."""

    def __post_init__(self) -> None:
        check_fields(self)
        names = [level.name for level in self.levels]
        if len(set(names)) != len(names):
            raise ValueError(f"levels {', '.join(names)}: each level can be there once")
        for name in ("fpn_width", "conv_width", "dim", "queue_size", "group_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name.replace('_', '-')} {getattr(self, name)}: must be at least 1")
        if self.queue_size > 2**26:
            raise ValueError(f"queue-size {self.queue_size}: must be at most {2**26}")
        if not self.temperature > 0:
            raise ValueError(f"temperature {self.temperature}: must be above 0")
        if not 0 <= self.key_momentum <= 1:
            raise ValueError(f"key-momentum {self.key_momentum}: must be in [0, 1]")


class FPN(nn.Module):
    """Feature pyramid down to the lowest level asked for; outputs only for the levels asked for.

    1 x 1 laterals on C5 and below, nearest upsampling added top-down, 3 x 3 outputs.

    Source: Lin et al., arXiv 1612.03144.
    """

    def __init__(self, channels: dict[str, int], levels: list[str], width: int, norm: bool) -> None:
        super().__init__()
        self.stages = sorted((s for s in STAGES if s[1] >= min(levels)[1]), reverse=True)
        self.levels = levels
        for stage in self.stages:
            self.add_module(f"lateral{stage[1]}", _fpn_conv(channels[stage], width, 1, norm))
            if f"P{stage[1]}" in levels:
                self.add_module(f"output{stage[1]}", _fpn_conv(width, width, 3, norm))

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """C3, C4, C5 -> the asked levels, (N, width, H, W) each."""
        outputs: dict[str, Tensor] = {}
        above: Tensor | None = None
        for stage in self.stages:
            lateral = self.get_submodule(f"lateral{stage[1]}")(maps[stage])
            above = lateral if above is None else lateral + F.interpolate(above, size=lateral.shape[-2:])
            if f"P{stage[1]}" in self.levels:
                outputs[f"P{stage[1]}"] = self.get_submodule(f"output{stage[1]}")(above)
        return outputs


def _fpn_conv(inputs: int, outputs: int, kernel: int, norm: bool) -> nn.Module:
    conv = TiledConv2d(inputs, outputs, kernel, padding=kernel // 2, bias=not norm)
    nn.init.kaiming_uniform_(conv.weight, a=1)  # Caffe2's XavierFill
    if conv.bias is None:
        return nn.Sequential(conv, nn.BatchNorm2d(outputs))
    nn.init.zeros_(conv.bias)
    return conv


class Encoder(nn.Module):
    """Backbone, global head, and what each level looks at: an FPN for P levels, a convolution for each C level.

    Raises:
        UserError: no such backbone.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.backbone = build_backbone(config.backbone)
        channels = self.backbone.channels
        top = channels["C5"]
        self.head = nn.Sequential(nn.Linear(top, top), nn.ReLU(inplace=True), nn.Linear(top, config.dim))
        pyramid = [level.name for level in config.levels if level.from_fpn]
        self.fpn = FPN(channels, pyramid, config.fpn_width, config.fpn_norm) if pyramid else None
        self.convs = nn.ModuleDict(
            {
                level.name: _fpn_conv(channels[level.source], config.conv_width, 3, norm=False)
                for level in config.levels
                if not level.from_fpn
            }
        )
        group_norms(self, config.group_size)
        quicken_relus(self)

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Encode a batch.

        Args:
            images: (N, 3, S, S), normalised by ImageNet's mean and standard deviation.

        Returns:
            The global vectors (N, dim), not yet L2-normalised, and for every level its map (N, C, H, W).
        """
        return self.from_stages(self.backbone(images))

    def from_stages(self, maps: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """What `forward` gives, from the backbone's own maps C3, C4, C5."""
        vectors = self.head(maps["C5"].mean(dim=(2, 3)))
        levels = {} if self.fpn is None else self.fpn(maps)
        levels |= {name: conv(maps[name]) for name, conv in self.convs.items()}
        return vectors, levels
