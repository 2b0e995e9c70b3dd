"""The encoder: a backbone, a global head, and a feature map for each level of the region loss.

Shapes: N images, C channels, a level's map of H x W cells.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from resim.acceleration import kernels
from resim.layers.grouped_norm import group_norms
from resim.model.backbone import STAGES, build_backbone
from resim.model.config import ModelConfig


class FPN(nn.Module):
    """Feature pyramid with outputs for the given levels, and laterals from C5 down to the finest of them.

    1 x 1 laterals, nearest-neighbour upsampling added top-down, 3 x 3 outputs.

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
        """C3, C4, C5 -> the maps of the given levels, (N, width, H, W) each."""
        outputs: dict[str, Tensor] = {}
        above: Tensor | None = None
        for stage in self.stages:
            lateral = self.get_submodule(f"lateral{stage[1]}")(maps[stage])
            above = lateral if above is None else lateral + F.interpolate(above, size=lateral.shape[-2:])
            if f"P{stage[1]}" in self.levels:
                outputs[f"P{stage[1]}"] = self.get_submodule(f"output{stage[1]}")(above)
        return outputs


def _fpn_conv(inputs: int, outputs: int, kernel: int, norm: bool) -> nn.Module:
    fast = kernels()
    build = nn.Conv2d if fast is None else fast.convolution
    conv = build(inputs, outputs, kernel, padding=kernel // 2, bias=not norm)
    nn.init.kaiming_uniform_(conv.weight, a=1)  # Caffe2's XavierFill
    if conv.bias is None:
        return nn.Sequential(conv, nn.BatchNorm2d(outputs))
    nn.init.zeros_(conv.bias)
    return conv


class Encoder(nn.Module):
    """Backbone, global head, an FPN for the P levels, and one convolution for each C level.

    Raises:
        UserError: there is no backbone of that name.
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

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Encode a batch.

        Args:
            images: (N, 3, S, S), normalised by ImageNet's mean and standard deviation.

        Returns:
            The global vectors (N, dim), not yet L2-normalised, and the map (N, C, H, W) of each level.
        """
        return self.from_stages(self.backbone(images))

    def from_stages(self, maps: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The results of `forward`, computed from the backbone's maps C3, C4, C5."""
        vectors = self.head(maps["C5"].mean(dim=(2, 3)))
        levels = {} if self.fpn is None else self.fpn(maps)
        levels |= {name: conv(maps[name]) for name, conv in self.convs.items()}
        return vectors, levels
