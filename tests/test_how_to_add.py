"""CONTRIBUTING.md's "how to add": what its lines say is enough."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from resim.layers.grouped_norm import GroupedBatchNorm2d
from resim.model import encoder
from resim.model.config import ModelConfig
from resim.model.resim import ReSim
from resim.regions.level import Level
from resim.views.views import Views


class ThreeConvolutions(nn.Module):
    """A backbone: `channels`, and maps C3, C4 and C5 at strides 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = {"C3": 4, "C4": 6, "C5": 8}
        self.c3 = nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.BatchNorm2d(4))
        self.c4 = nn.Conv2d(4, 6, 2, stride=2)
        self.c5 = nn.Conv2d(6, 8, 2, stride=2)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        c3 = self.c3(images)
        c4 = self.c4(c3)
        return {"C3": c3, "C4": c4, "C5": self.c5(c4)}


def test_a_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "build_backbone", lambda name: ThreeConvolutions())
    levels = (
        Level(name="P4", window=32, step=16, negatives="all"),
        Level(name="C3", window=16, step=16, negatives="group"),
    )
    config = ModelConfig(backbone="three", levels=levels, fpn_width=4, conv_width=4, dim=8, queue_size=8, group_size=2)
    model = ReSim(config, seed=0)
    assert any(isinstance(module, GroupedBatchNorm2d) for module in model.query.backbone.modules())
    images_q, images_k = torch.randn(2, 4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    crops = torch.tensor([[0.0, 0.0, 100.0, 100.0]]).expand(4, 4)
    losses = model(Views(images_q, crops), Views(images_k, crops))
    assert set(losses) >= {"instance", "P4", "C3", "total"}
    losses["total"].backward()
    assert all(parameter.grad is not None for parameter in model.query.parameters())
