"""Weights for timm: its own networks load them and have our features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from exchange_files import has_equal_maps, own_checkpoint, small
from needs import need
from resim.errors import UserError
from resim.exchange.export import Exported, export
from resim.exchange.features import TOLERANCE, features_of
from resim.exchange.weights import read_weights

IMAGES = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def timm() -> Any:
    return need("timm", "timm loads our ResNet in both formats and gives our features", "timm")


@pytest.fixture(scope="module", params=[False, True], ids=["plain-fpn", "normalised-fpn"])
def done(request: pytest.FixtureRequest, timm: Any, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """An export of a checkpoint, into "new folder" next to it."""
    folder = tmp_path_factory.mktemp("own")
    own_checkpoint(folder / "last.pt", small(norm=request.param))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return export(folder / "last.pt", "timm", Path("new folder") / "out.safetensors", fpn_norm="keep")


def file_of(done: Exported) -> Path:
    return done.weights.path.parent / done.paths[0]


@pytest.mark.slow
def test_both_endings_are_read_again_bit_equal(done: Exported, tmp_path: Path) -> None:
    """An export of an export has the other ending; it is again the checkpoint's backbone."""
    before, after = done.weights.tensors, read_weights(file_of(done))
    again = export(file_of(done), "timm", tmp_path / "again.pth", fpn_norm="keep")
    once_more = read_weights(again.paths[0])
    for read, file in ((after, done), (once_more, again)):
        assert read.left_over == ()
        assert all(torch.equal(value, before[name]) for name, value in read.tensors.items())
        assert file.differences is not None
        assert max(file.differences.values()) <= TOLERANCE
    assert set(after.tensors) == set(before) - set(done.written.left_out)
    assert set(once_more.tensors) == set(after.tensors)
    assert after.origin == "resim checkpoint (quick, resnet18, step 12)"


@pytest.mark.slow
def test_timm_loads_its_resnet_and_its_feature_extractor(timm: Any, done: Exported) -> None:
    path = file_of(done)
    assert set(done.differences or {}) == {"C2", "C3", "C4", "C5"}
    whole = timm.create_model("resnet18", num_classes=0, checkpoint_path=path).eval()
    extractor = timm.create_model("resnet18", features_only=True, checkpoint_path=path).eval()
    ours = features_of(done.weights, IMAGES)
    with torch.no_grad():
        maps = dict(zip(("C2", "C3", "C4", "C5"), extractor(IMAGES)[1:], strict=True))
        assert has_equal_maps(ours, maps)
        assert has_equal_maps(ours, {"C5": whole.forward_features(IMAGES)})


@pytest.mark.slow
def test_the_printed_line_loads_the_file_where_it_is(
    timm: Any, done: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(done.weights.path.parent)
    exec(done.written.load, {"timm": timm, "torch": torch})


@pytest.mark.slow
def test_a_timm_backbone_is_exported_to_timm(timm: Any, tmp_path: Path) -> None:
    own_checkpoint(tmp_path / "last.pt", small(backbone="timm/regnety_002"))
    done = export(tmp_path / "last.pt", "timm", tmp_path / "regnet.safetensors")
    assert set(done.differences or {}) == {"C3", "C4", "C5"}
    extractor = timm.create_model("regnety_002", features_only=True, checkpoint_path=tmp_path / "regnet.safetensors")
    with torch.no_grad():
        maps = dict(zip(("C3", "C4", "C5"), extractor.eval()(IMAGES)[-3:], strict=True))
    assert has_equal_maps(features_of(read_weights(tmp_path / "last.pt"), IMAGES), maps)
    for to in ("torchvision", "torchvision-detection", "detectron2"):
        with pytest.raises(UserError, match="regnety_002"):
            export(tmp_path / "last.pt", to, tmp_path / "x.pth")  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "x.pth").exists()
