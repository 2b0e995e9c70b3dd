"""CONTRIBUTING.md's "how to add": what its lines say is enough."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from exchange_files import SMALL, own_checkpoint
from resim.errors import UserError
from resim.exchange import export as export_module
from resim.exchange.features import features_of, probe_images
from resim.exchange.targets import ENDINGS, Check, Written
from resim.exchange.weights import Weights
from resim.layers.grouped_norm import GroupedBatchNorm2d
from resim.model import encoder
from resim.model.config import ModelConfig
from resim.model.resim import ReSim
from resim.probes.accuracy import Accuracy, accuracy
from resim.probes.knn import knn_votes
from resim.probes.suite import Score, difference
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


def test_a_probe() -> None:
    """Two networks on the same images: a value for each image, their means, and an interval of the difference."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(64, 3, 64, 64, generator=generator)
    labels = (images.mean((1, 2, 3)) > images.mean()).long()

    def brightness_probe(backbone: nn.Module) -> Accuracy:
        with torch.no_grad():
            vectors = backbone(images)["C5"].mean((2, 3))
        votes = knn_votes(vectors, labels, vectors, num_classes=2, k=1)
        return accuracy(votes, labels)

    value = brightness_probe(ThreeConvolutions().eval())
    assert value.share == 1.0  # each image is its own nearest neighbour
    score = Score(value=value, details={"k": 1})
    assert difference(score, score) == (0.0, 0.0, 0.0)
    assert score.to_json()["n"] == 64


def test_an_export_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written as an archive of NumPy's, read from it, and compared before it takes its place."""
    own_checkpoint(tmp_path / "last.pt", SMALL)

    def write_npz(
        weights: Weights, folder: Path, name: str, metadata: Mapping[str, str], shift: float = 0.0
    ) -> Written:
        save: Any = np.savez  # its stub takes any array's name for `allow_pickle`
        save(folder / name, **{key: value.numpy() for key, value in weights.tensors.items()})
        with np.load(folder / name) as file:
            stored = {key: torch.from_numpy(file[key]) for key in file.files}
        images = probe_images()
        maps = features_of(dataclasses.replace(weights, tensors=stored), images)
        check = Check(images, {level: value + shift for level, value in maps.items()})
        return Written(files=(name,), target=f"numpy {np.__version__}", load=f"numpy.load({name!r})", checks=(check,))

    monkeypatch.setitem(ENDINGS, "timm", (".npz",))
    monkeypatch.setattr(export_module, "write_timm", write_npz)
    exported = export_module.export(tmp_path / "last.pt", "timm", tmp_path / "weights.npz")
    assert exported.differences is not None
    assert set(exported.differences.values()) == {0.0}
    monkeypatch.setattr(export_module, "write_timm", functools.partial(write_npz, shift=1.0))
    with pytest.raises(UserError, match="not written: features in numpy"):
        export_module.export(tmp_path / "last.pt", "timm", tmp_path / "wrong.npz")
    assert not (tmp_path / "wrong.npz").exists()
