"""The graph of an ONNX file, in onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from exchange_files import has_equal_maps, own_checkpoint, small
from needs import need
from resim.exchange.export import export
from resim.exchange.features import features_of
from resim.exchange.weights import read_weights
from thin_resnets import ShallowResNet, resnets_of


@pytest.fixture(autouse=True)
def shallow_resnets() -> Iterator[None]:
    """One block in each stage: an export takes as long as its graph has nodes."""
    with resnets_of(ShallowResNet):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("norm", [False, True], ids=["plain-fpn", "normalised-fpn"])
def test_onnx_gives_our_features_at_any_batch_and_size(tmp_path: Path, norm: bool) -> None:
    fact = "ONNX gives our features at any batch and size"
    _, _, runtime = (need(module, fact, "onnx") for module in ("onnx", "onnxscript", "onnxruntime"))
    checkpoint = tmp_path / "last.pt"
    own_checkpoint(checkpoint, small(norm=norm))
    done = export(checkpoint, "onnx", tmp_path / "features.onnx", licence="Apache-2.0")
    assert set(done.differences or {}) == {"C2", "C3", "C4", "C5", "P3", "P4"}
    session = runtime.InferenceSession(tmp_path / "features.onnx")
    names = [output.name for output in session.get_outputs()]
    weights = read_weights(checkpoint)
    for shape in ((3, 3, 64, 64), (1, 3, 101, 67)):
        images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        maps = dict(zip(names, map(torch.from_numpy, session.run(None, {"images": images.numpy()})), strict=True))
        assert has_equal_maps(features_of(weights, images), maps)
        assert set(maps) == {"C2", "C3", "C4", "C5", "P3", "P4"}
    metadata = session.get_modelmeta().custom_metadata_map
    assert (metadata["licence"], metadata["origin"]) == ("Apache-2.0", weights.kind)
