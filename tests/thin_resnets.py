"""torchvision's ResNets with a quarter of the channels: names, blocks and strides are theirs.

What is stated of names, blocks and strides is true of them as of the full ones, which take ten times as long to build,
train, write and read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import nn
from torchvision.models import resnet
from torchvision.models.resnet import ResNet

import exchange_files
from resim.exchange.networks.architecture import encoder_shapes


class ThinResNet(ResNet):
    """16 channels after the stem, 16 to 128 in the blocks of the stages, four times as many after a bottleneck."""

    share = 4
    """Of torchvision's channels, one in so many is left."""

    def __init__(self, block: Any, layers: list[int], num_classes: int = 1000, **settings: Any) -> None:
        super().__init__(block, layers, num_classes=1, **settings)
        self.fc = nn.Linear(self.inplanes, num_classes)

    def _make_layer(self, block: Any, planes: int, blocks: int, *places: Any, **more: Any) -> nn.Sequential:
        if planes == 64:  # the first stage, after the stem
            self.inplanes //= self.share
            self.conv1 = nn.Conv2d(3, self.inplanes, kernel_size=7, stride=2, padding=3, bias=False)
            self.bn1 = self._norm_layer(self.inplanes)
        return super()._make_layer(block, planes // self.share, blocks, *places, **more)


class TinyResNet(ThinResNet):
    """2 channels after the stem, 2 to 16 in the blocks of the stages: a file of some ten thousand bytes."""

    share = 32


class ShallowResNet(ThinResNet):
    """One block in each stage."""

    def __init__(self, block: Any, layers: list[int], num_classes: int = 1000, **settings: Any) -> None:
        super().__init__(block, [1] * len(layers), num_classes, **settings)


@contextmanager
def resnets_of(kind: type[ResNet]) -> Iterator[None]:
    """Let torchvision build its ResNets of this class; shapes and models that tests and package keep are dropped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet, "ResNet", kind)
        _clear_caches()
        yield
    _clear_caches()


def _clear_caches() -> None:
    encoder_shapes.cache_clear()
    exchange_files._trained.cache_clear()
