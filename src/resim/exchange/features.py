"""Feature maps of weights in our own network, with which each export is compared."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from resim.exchange.weights import Weights
from resim.model.backbone import ResNet
from resim.model.encoder import Encoder

TOLERANCE = 1e-5
"""Largest difference of an exported feature map, relative to the map's largest value where that is above 1."""


def build_encoder(weights: Weights) -> Encoder:
    """Our network with these weights, float32, in evaluation mode; a part that the file does not have starts new."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = Encoder(weights.config)
    encoder.load_state_dict(encoder.state_dict() | weights.tensors)
    return encoder.eval()


class Pyramid(nn.Module):
    """The maps of an encoder, from the finest: C2 (of a ResNet), C3, C4, C5, and the levels of its FPN.

    `names` are their names, in the order of the outputs.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.backbone, self.fpn = encoder.backbone, encoder.fpn
        pyramid = [] if encoder.fpn is None else sorted(encoder.fpn.levels)
        stages = ["C2"] if isinstance(encoder.backbone, ResNet) else []
        self.names = [*stages, "C3", "C4", "C5", *pyramid]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W) -> each map of `names`, (N, C, H / stride, W / stride)."""
        maps: dict[str, Tensor] = {}
        if isinstance(self.backbone, ResNet):
            net = self.backbone
            x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
            for stage in (2, 3, 4, 5):
                x = net.get_submodule(f"layer{stage - 1}")(x)
                maps[f"C{stage}"] = x
        else:
            maps |= self.backbone(images)
        if self.fpn is not None:
            maps |= self.fpn(maps)
        return tuple(maps[name] for name in self.names)


@torch.no_grad()
def features_of(weights: Weights, images: Tensor) -> dict[str, Tensor]:
    """Each map of `Pyramid` for a batch of images."""
    pyramid = Pyramid(build_encoder(weights)).eval()
    return dict(zip(pyramid.names, pyramid(images), strict=True))


def probe_images(height: int = 96, width: int = 128, count: int = 2) -> Tensor:
    """The images on which an export is verified: noise of a fixed seed, (count, 3, height, width)."""
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def differences(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest absolute difference of each common map, relative to our largest value where that is above 1.

    Infinite where shapes differ or a value is not finite.
    """
    largest: dict[str, float] = {}
    for name in ours:
        if name not in theirs:
            continue
        a, b = ours[name].double(), theirs[name].double()
        if a.shape != b.shape or not (a.isfinite().all() and b.isfinite().all()):
            largest[name] = float("inf")
        else:
            largest[name] = ((a - b).abs().max() / max(1.0, a.abs().max().item())).item()
    return largest
