"""Weights are exported in each format with our features in the target's own model, and read again bit-equal."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

import resim
from exchange_files import ENDING, SMALL, has_equal_maps, own_checkpoint, small
from resim.cli.main import main
from resim.exchange.export import Exported, export
from resim.exchange.features import TOLERANCE, features_of
from resim.exchange.targets import Target
from resim.exchange.weights import read_weights
from resim.regions.level import Level

Captured = pytest.CaptureFixture[str]
IMAGES = torch.randn(1, 3, 128, 160, generator=torch.Generator().manual_seed(5))
TARGETS: tuple[Target, ...] = ("torchvision", "torchvision-detection", "detectron2", "safetensors", "hub")
pytestmark = pytest.mark.usefixtures("thin_resnets_without_detectron2")


@pytest.fixture(scope="module", params=[False, True], ids=["plain-fpn", "normalised-fpn"])
def checkpoint(
    request: pytest.FixtureRequest, thin_resnets_without_detectron2: None, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("own") / "last.pt"
    own_checkpoint(path, small(norm=request.param))
    return path


@pytest.fixture(scope="module")
def exports(checkpoint: Path) -> Callable[[Target], Exported]:
    """The checkpoint as one target has it, in "new folder" next to it; it is written at the first call."""

    @functools.cache
    def written(to: Target) -> Exported:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(checkpoint.parent)
            return export(checkpoint, to, Path("new folder") / f"{to}{ENDING[to]}", fpn_norm="keep")

    return written


# -- every format


@pytest.mark.slow
@pytest.mark.parametrize("to", TARGETS)
def test_an_export_that_is_read_again_is_bit_equal(
    checkpoint: Path, exports: Callable[[Target], Exported], tmp_path: Path, to: Target
) -> None:
    done = exports(to)
    path = checkpoint.parent / done.paths[0]
    before, after = done.weights.tensors, read_weights(path)
    assert after.left_over == ()
    assert set(after.tensors) == set(before) - set(done.written.left_out)
    assert all(torch.equal(value, before[name]) for name, value in after.tensors.items())
    assert after.origin == "resim checkpoint (quick, resnet18, step 12)"
    again = export(path, to, tmp_path / f"second{ENDING[to]}", fpn_norm="keep")
    once_more = read_weights(again.paths[0]).tensors
    assert all(torch.equal(value, once_more[name]) for name, value in after.tensors.items())


@pytest.mark.slow
def test_weights_without_an_fpn_start_all_of_the_fpn_new_in_detectron2(tmp_path: Path) -> None:
    own_checkpoint(tmp_path / "last.pt", small(levels=()))
    done = export(tmp_path / "last.pt", "detectron2", tmp_path / "backbone.pth")
    parts = {name.split(".")[1] for name in done.written.starts_new if name.startswith("backbone.")}
    assert parts == {f"fpn_{part}{level}" for part in ("lateral", "output") for level in (2, 3, 4, 5)}
    assert "backbone.fpn_lateral5.norm.running_var" in done.written.starts_new
    assert set(read_weights(tmp_path / "backbone.pth").tensors) == {
        name for name in read_weights(tmp_path / "last.pt").tensors if name.startswith("backbone.")
    }


@pytest.mark.slow
@pytest.mark.parametrize("to", ["torchvision", "torchvision-detection"])
def test_both_endings_of_a_state_dict(
    checkpoint: Path, exports: Callable[[Target], Exported], tmp_path: Path, to: Target
) -> None:
    files = [exports(to), export(checkpoint, to, tmp_path / "file.safetensors")]
    for done in files:
        assert done.differences is not None
        assert max(done.differences.values()) <= TOLERANCE
    states = [read_weights(checkpoint.parent / done.paths[0]).tensors for done in files]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.slow
def test_torchvision_loads_its_resnet(checkpoint: Path, exports: Callable[[Target], Exported]) -> None:
    done = exports("torchvision")
    assert set(done.differences or {}) == {"C2", "C3", "C4", "C5"}
    model: Any = torchvision.models.resnet18()
    state = torch.load(checkpoint.parent / done.paths[0], weights_only=True)["state_dict"]
    loaded = model.load_state_dict(state, strict=False)
    assert tuple(loaded.missing_keys) == done.written.starts_new == ("fc.weight", "fc.bias")
    assert loaded.unexpected_keys == []
    model.eval().fc = torch.nn.Identity()
    pooled = features_of(read_weights(checkpoint), IMAGES)["C5"].mean(dim=(2, 3))
    with torch.no_grad():
        assert (model(IMAGES) - pooled).abs().max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("norm", [False, True])
def test_torchvision_loads_its_mask_r_cnn(tmp_path: Path, norm: bool) -> None:
    """A normalised FPN is folded into the plain one that the detector of torchvision has."""
    own_checkpoint(tmp_path / "last.pt", small(norm=norm, backbone="resnet50"))
    done = export(tmp_path / "last.pt", "torchvision-detection", tmp_path / "detector.pth", fpn_norm="plain")
    state = torch.load(tmp_path / "detector.pth", weights_only=True)["state_dict"]
    model: Any = torchvision.models.detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    loaded = model.eval().load_state_dict(state, strict=False)
    assert loaded.unexpected_keys == []
    new = {name for name in loaded.missing_keys if name.startswith("backbone.")}
    places = ("inner_blocks.0", "layer_blocks.0", "layer_blocks.3")  # lateral 2, outputs 2 and 5
    assert new == {f"backbone.fpn.{place}.0.{leaf}" for place in places for leaf in ("weight", "bias")}
    assert new | {"rpn.*", "roi_heads.*"} == set(done.written.starts_new)
    with torch.no_grad():
        pyramid = model.backbone(IMAGES)
    assert has_equal_maps(
        features_of(read_weights(tmp_path / "last.pt"), IMAGES), {"P3": pyramid["1"], "P4": pyramid["2"]}
    )


@pytest.mark.slow
@pytest.mark.parametrize("level", ["P5", "C4"])
def test_other_levels_are_exported_too(tmp_path: Path, level: str) -> None:
    own_checkpoint(tmp_path / "last.pt", small(levels=(Level(name=level, window=64, step=32),)))
    done = export(tmp_path / "last.pt", "torchvision-detection", tmp_path / "detector.pth")
    assert set(done.differences or {}) == {"C2", "C3", "C4", "C5"} | ({"P5"} if level == "P5" else set())
    export(tmp_path / "last.pt", "safetensors", tmp_path / "w.safetensors")
    before, after = (read_weights(tmp_path / name).tensors for name in ("last.pt", "w.safetensors"))
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


# -- the line that is printed to load it


@pytest.mark.slow
@pytest.mark.parametrize("to", ["torchvision", "torchvision-detection", "safetensors", "hub"])
def test_the_printed_line_loads_the_file_where_it_is(
    checkpoint: Path, exports: Callable[[Target], Exported], monkeypatch: pytest.MonkeyPatch, to: Target
) -> None:
    """Of a ResNet-18, for which torchvision has no function of its own with an FPN."""
    done = exports(to)
    monkeypatch.chdir(checkpoint.parent)
    scope: dict[str, Any] = {"resim": resim, "torch": torch, "torchvision": torchvision}
    exec(done.written.load, scope)
    if to == "torchvision-detection":
        state = read_weights(checkpoint).tensors
        theirs = scope["model"].state_dict()
        assert torch.equal(theirs["backbone.body.layer2.0.conv1.weight"], state["backbone.layer2.0.conv1.weight"])
        normed = read_weights(checkpoint).config.fpn_norm
        name = f"fpn.lateral5.{'0.' if normed else ''}weight"
        assert torch.equal(theirs["backbone.fpn.inner_blocks.3.0.weight"], state[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("levels", "width", "fpn_norm", "settings"),
    [
        ((Level(name="C4", window=64, step=32),), 128, "auto", "MODEL.RESNETS.RES2_OUT_CHANNELS 64"),
        ((), 128, "plain", "MODEL.RESNETS.RES2_OUT_CHANNELS 64"),
        (None, 256, "auto", "MODEL.RESNETS.RES2_OUT_CHANNELS 64"),
        (None, 128, "auto", "MODEL.RESNETS.RES2_OUT_CHANNELS 64 MODEL.FPN.OUT_CHANNELS 128"),
        (None, 128, "plain", "MODEL.FPN.OUT_CHANNELS 128 MODEL.FPN.NORM ''"),
    ],
)  # fmt: skip
def test_settings_of_detectron2s_fpn_are_printed_for_weights_with_one(
    tmp_path: Path, levels: Any, width: int, fpn_norm: Any, settings: str
) -> None:
    recipe = small(levels=levels)
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, fpn_width=width))
    own_checkpoint(tmp_path / "last.pt", recipe)
    out = tmp_path / "a b.pth"
    line = export(tmp_path / "last.pt", "detectron2", out, fpn_norm=fpn_norm).written.load
    assert line.endswith(settings)
    assert f"MODEL.WEIGHTS '{out}' " in line


@pytest.mark.slow
@pytest.mark.parametrize("width", [128, 256])
def test_the_width_of_a_missing_fpn_is_not_exported_to_torchvision(tmp_path: Path, width: int) -> None:
    recipe = small(levels=(Level(name="C4", window=64, step=32),))
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, fpn_width=width))
    own_checkpoint(tmp_path / "last.pt", recipe)
    line = export(tmp_path / "last.pt", "torchvision-detection", tmp_path / "det.pth").written.load
    assert "[16, 32, 64, 128], 256)" in line


# -- the command


@pytest.mark.slow
def test_export_prints_the_differences(capsys: Captured, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "resnet.pth"
    assert main(["export", str(checkpoint), "--to", "torchvision", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"read {checkpoint}: resim checkpoint (quick, resnet18, step 12)"
    message = next(line for line in lines if line.startswith("verified in torchvision"))
    assert message.endswith("largest difference from our features: C2 0.0e+00, C3 0.0e+00, C4 0.0e+00, C5 0.0e+00")
    assert f"wrote {out}" in lines
    assert [path.name for path in out.parent.iterdir()] == ["resnet.pth"]


@pytest.mark.slow
def test_the_default_name_is_of_recipe_and_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt", SMALL)
    monkeypatch.chdir(tmp_path)
    assert main(["export", "run", "--to", "torchvision"]) == 0
    assert (tmp_path / "quick-torchvision.pth").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--to"),
        (["--to", "keras"], "--to"),
        (["--to", "torchvision", "--out", "x.pkl"], "--out x.pkl: a file for torchvision must end in .pth or .pt or"),
        (["--to", "onnx", "--out", "x"], "--out x: a file for onnx must end in .onnx"),
        (["--to", "hub", "--out", "full"], "--out full: exists already: name another folder"),
        (["--to", "safetensors", "--out", "full.safetensors"], "--out full.safetensors: is a folder, a file is needed"),
        (["--to", "torchvision", "--out", "last.pt/x.pth"], "last.pt: cannot be written to"),
        (["--to", "torchvision", "--probes", "none.json"], "--probes none.json: cannot be read"),
        (["--to", "torchvision", "--probes", "last.pt"], "--probes last.pt: is no JSON"),
        (["--to", "torchvision", "--fpn-norm", "some"], "--fpn-norm"),
        (["--to", "torchvision", "--licence", "a: b\nc"], "--licence 'a: b\\nc': must be one word"),
        (["--to", "torchvision", "--out", "same.pt"], "--out same.pt: is the checkpoint itself"),
        (["--to", "safetensors", "--out", "notes.safetensors"], "its card would replace notes.md"),
    ],
)
def test_options_of_export_that_cannot_work(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    own_checkpoint(Path("last.pt"), SMALL)
    for folder in ("full", "full.safetensors"):
        Path(folder).mkdir()
        (Path(folder) / "file").touch()
    Path("same.pt").symlink_to("last.pt")
    Path("notes.md").write_text("mine")
    before = sorted(Path().rglob("*"))
    capsys.readouterr()
    assert main(["export", "last.pt", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(Path().rglob("*")) == before


def test_a_public_name() -> None:
    assert resim.load.__module__ == "resim.exchange.load"
    assert resim.read_weights is read_weights
