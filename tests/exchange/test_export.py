"""Weights go out in every format, each with our features in the target's own model, and come in again bit-equal."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors import safe_open
from torch import Tensor

import resim
from exchange_files import SMALL, own_checkpoint, published, small, trained
from needs import need
from resim.cli.main import main
from resim.errors import UserError
from resim.exchange import export as export_room
from resim.exchange import to_torchvision
from resim.exchange.export import export
from resim.exchange.features import TOLERANCE, differences, features_of
from resim.exchange.fpn_norms import with_norms, without_norms
from resim.exchange.targets import Target
from resim.exchange.to_torchvision import write_torchvision
from resim.exchange.weights import read_weights
from resim.regions.level import Level
from resim.runs.config import Recipe

Captured = pytest.CaptureFixture[str]
ENDING: dict[Target, str] = {
    "torchvision": ".pth", "torchvision-detection": ".pth", "detectron2": ".pth", "timm": ".safetensors",
    "safetensors": ".safetensors", "hub": "",
}  # fmt: skip
IMAGES = torch.randn(1, 3, 128, 160, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module", params=[False, True], ids=["plain-fpn", "normalised-fpn"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "last.pt"
    own_checkpoint(path, small(norm=request.param))
    return path


def near(ours: Mapping[str, Tensor], theirs: Mapping[Any, Tensor]) -> bool:
    found = differences(ours, theirs)
    return set(found) == set(theirs) and max(found.values()) <= TOLERANCE


# -- every format


@pytest.mark.slow
@pytest.mark.parametrize("to", list(ENDING))
def test_out_and_in_again_is_bit_equal(checkpoint: Path, tmp_path: Path, to: Target) -> None:
    before = read_weights(checkpoint).tensors
    done = export(checkpoint, to, tmp_path / f"first{ENDING[to]}", fpn_norm="keep")
    after = read_weights(done.paths[0])
    assert after.left_over == ()
    assert set(after.tensors) == set(before) - set(done.written.left_out)
    assert all(torch.equal(value, before[name]) for name, value in after.tensors.items())
    assert after.origin == "resim checkpoint (quick, resnet18, step 12)"
    again = export(done.paths[0], to, tmp_path / f"second{ENDING[to]}", fpn_norm="keep")
    once_more = read_weights(again.paths[0]).tensors
    assert all(torch.equal(value, once_more[name]) for name, value in after.tensors.items())


@pytest.mark.slow
def test_weights_without_an_fpn_start_the_whole_fpn_new_in_detectron2(tmp_path: Path) -> None:
    own_checkpoint(tmp_path / "last.pt", small(levels=()))
    done = export(tmp_path / "last.pt", "detectron2", tmp_path / "backbone.pth")
    parts = {name.split(".")[1] for name in done.written.starts_new if name.startswith("backbone.")}
    assert parts == {f"fpn_{part}{level}" for part in ("lateral", "output") for level in (2, 3, 4, 5)}
    assert "backbone.fpn_lateral5.norm.running_var" in done.written.starts_new
    assert set(read_weights(tmp_path / "backbone.pth").tensors) == {
        name for name in read_weights(tmp_path / "last.pt").tensors if name.startswith("backbone.")
    }


@pytest.mark.slow
@pytest.mark.parametrize("to", ["torchvision", "torchvision-detection", "timm"])
def test_both_endings_of_a_state_dict(checkpoint: Path, tmp_path: Path, to: Target) -> None:
    if to == "timm":
        need("timm", "timm loads our exports in both formats", "timm")
    files = [export(checkpoint, to, tmp_path / f"file{ending}") for ending in (".pth", ".safetensors")]
    for done in files:
        assert done.differences is not None
        assert max(done.differences.values()) <= TOLERANCE
    states = [read_weights(done.paths[0]).tensors for done in files]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.slow
def test_torchvision_loads_its_resnet(checkpoint: Path, tmp_path: Path) -> None:
    done = export(checkpoint, "torchvision", tmp_path / "resnet.pth")
    assert set(done.differences or {}) == {"C2", "C3", "C4", "C5"}
    model: Any = torchvision.models.resnet18()
    loaded = model.load_state_dict(torch.load(tmp_path / "resnet.pth", weights_only=True)["state_dict"], strict=False)
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
    assert near(features_of(read_weights(tmp_path / "last.pt"), IMAGES), {"P3": pyramid["1"], "P4": pyramid["2"]})


@pytest.mark.slow
def test_timm_loads_its_resnet_and_its_feature_extractor(checkpoint: Path, tmp_path: Path) -> None:
    timm: Any = need("timm", "timm loads our ResNet and gives our features", "timm")
    path = tmp_path / "resnet.safetensors"
    done = export(checkpoint, "timm", path)
    assert set(done.differences or {}) == {"C2", "C3", "C4", "C5"}
    whole = timm.create_model("resnet18", num_classes=0, checkpoint_path=path).eval()
    extractor = timm.create_model("resnet18", features_only=True, checkpoint_path=path).eval()
    ours = features_of(read_weights(checkpoint), IMAGES)
    with torch.no_grad():
        maps = dict(zip(("C2", "C3", "C4", "C5"), extractor(IMAGES)[1:], strict=True))
        assert near(ours, maps)
        assert near(ours, {"C5": whole.forward_features(IMAGES)})


@pytest.mark.slow
def test_a_timm_backbone_goes_back_to_timm(tmp_path: Path) -> None:
    timm: Any = need("timm", "a timm backbone goes back to timm", "timm")
    own_checkpoint(tmp_path / "last.pt", small(backbone="timm/regnety_002"))
    done = export(tmp_path / "last.pt", "timm", tmp_path / "regnet.safetensors")
    assert set(done.differences or {}) == {"C3", "C4", "C5"}
    extractor = timm.create_model("regnety_002", features_only=True, checkpoint_path=tmp_path / "regnet.safetensors")
    with torch.no_grad():
        maps = dict(zip(("C3", "C4", "C5"), extractor.eval()(IMAGES)[-3:], strict=True))
    assert near(features_of(read_weights(tmp_path / "last.pt"), IMAGES), maps)
    for to in ("torchvision", "torchvision-detection", "detectron2"):
        with pytest.raises(UserError, match="regnety_002"):
            export(tmp_path / "last.pt", to, tmp_path / "x.pth")  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "x.pth").exists()


@pytest.mark.slow
@pytest.mark.parametrize("level", ["P5", "C4"])
def test_other_levels_go_out_too(tmp_path: Path, level: str) -> None:
    own_checkpoint(tmp_path / "last.pt", small(levels=(Level(name=level, window=64, step=32),)))
    done = export(tmp_path / "last.pt", "torchvision-detection", tmp_path / "detector.pth")
    assert set(done.differences or {}) == {"C2", "C3", "C4", "C5"} | ({"P5"} if level == "P5" else set())
    export(tmp_path / "last.pt", "safetensors", tmp_path / "w.safetensors")
    before, after = (read_weights(tmp_path / name).tensors for name in ("last.pt", "w.safetensors"))
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.slow
def test_onnx_gives_our_features_at_any_batch_and_size(checkpoint: Path, tmp_path: Path) -> None:
    fact = "ONNX gives our features at any batch and size"
    _, _, runtime = (need(module, fact, "onnx") for module in ("onnx", "onnxscript", "onnxruntime"))
    done = export(checkpoint, "onnx", tmp_path / "features.onnx", licence="Apache-2.0")
    assert set(done.differences or {}) == {"C2", "C3", "C4", "C5", "P3", "P4"}
    session = runtime.InferenceSession(tmp_path / "features.onnx")
    names = [output.name for output in session.get_outputs()]
    weights = read_weights(checkpoint)
    for shape in ((3, 3, 64, 64), (1, 3, 101, 67)):
        images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        maps = dict(zip(names, map(torch.from_numpy, session.run(None, {"images": images.numpy()})), strict=True))
        assert near(features_of(weights, images), maps)
        assert set(maps) == {"C2", "C3", "C4", "C5", "P3", "P4"}
    metadata = session.get_modelmeta().custom_metadata_map
    assert (metadata["licence"], metadata["origin"]) == ("Apache-2.0", weights.kind)


# -- the line that is printed to load it


@pytest.mark.slow
@pytest.mark.parametrize("to", ["torchvision", "torchvision-detection", "timm", "safetensors", "hub"])
def test_the_printed_line_loads_the_file_where_it_is(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: Target
) -> None:
    """Of a ResNet-18, for which torchvision has no function of its own with an FPN."""
    monkeypatch.chdir(tmp_path)
    done = export(checkpoint, to, Path("new folder") / f"out{ENDING[to]}", fpn_norm="keep")
    scope: dict[str, Any] = {"resim": resim, "torch": torch, "torchvision": torchvision}
    if to == "timm":
        scope["timm"] = need("timm", "the printed line loads a file in timm", "timm")
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
def test_a_width_without_an_fpn_is_not_torchvisions_either(tmp_path: Path, width: int) -> None:
    recipe = small(levels=(Level(name="C4", window=64, step=32),))
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, fpn_width=width))
    own_checkpoint(tmp_path / "last.pt", recipe)
    line = export(tmp_path / "last.pt", "torchvision-detection", tmp_path / "det.pth").written.load
    assert "[64, 128, 256, 512], 256)" in line


# -- an FPN with norms and one without


@pytest.mark.slow
@pytest.mark.parametrize("norm", [False, True])
def test_norms_are_put_in_and_folded_away_with_the_same_features(tmp_path: Path, norm: bool) -> None:
    own_checkpoint(tmp_path / "last.pt", small(norm=norm))
    done = export(
        tmp_path / "last.pt", "safetensors", tmp_path / "w.safetensors", fpn_norm="plain" if norm else "batchnorm"
    )
    assert len(done.notes) == 1
    assert ("folded into its convolutions" if norm else "biases were folded into BatchNorm's shift") in done.notes[0]
    weights = read_weights(tmp_path / "w.safetensors")
    assert weights.config.fpn_norm is not norm
    assert weights.recipe is not None
    assert weights.recipe.model.fpn_norm is not norm
    assert near(features_of(read_weights(tmp_path / "last.pt"), IMAGES), features_of(weights, IMAGES))


def test_a_bias_is_the_shift_of_a_norm_that_divides_by_one() -> None:
    plain = {"fpn.lateral5.weight": torch.ones(2, 3, 1, 1), "fpn.lateral5.bias": torch.tensor([3.0, -4.0])}
    normed = with_norms(plain)
    assert normed["fpn.lateral5.1.bias"].tolist() == [3, -4]
    assert normed["fpn.lateral5.1.weight"].tolist() == [1, 1]
    assert normed["fpn.lateral5.1.running_mean"].tolist() == [0, 0]
    assert torch.allclose(normed["fpn.lateral5.1.running_var"], torch.tensor(1 - 1e-5), atol=1e-9)
    back = without_norms(normed)
    assert back.keys() == plain.keys()
    assert all(torch.allclose(back[name], plain[name], rtol=1e-6) for name in plain)


def test_a_norm_folded_by_hand() -> None:
    """y = 2 (x - 1) / sqrt(4) + 5 = x + 4, of a convolution that multiplies by 3."""
    normed = {"fpn.output4.0.weight": torch.full((1, 1, 1, 1), 3.0)}
    leaves = {"weight": 2.0, "bias": 5.0, "running_mean": 1.0, "running_var": 4.0 - 1e-5}
    normed |= {f"fpn.output4.1.{leaf}": torch.tensor([value]) for leaf, value in leaves.items()}
    folded = without_norms(normed)
    assert folded["fpn.output4.weight"].item() == pytest.approx(3)
    assert folded["fpn.output4.bias"].item() == pytest.approx(4)


# -- the licence follows the weights


@pytest.mark.slow
@pytest.mark.parametrize("to", list(ENDING))
def test_the_licence_of_published_weights_is_in_every_export(tmp_path: Path, to: Target) -> None:
    torch.save(published(trained(SMALL)), tmp_path / "published.pth")
    path = export(tmp_path / "published.pth", to, tmp_path / f"out{ENDING[to]}").paths[0]
    origin = "published ReSim-FPN checkpoint (resnet18 with an FPN, epoch 200)"
    weights = read_weights(path)
    assert (weights.licence, weights.origin) == ("CC-BY-NC-4.0", origin)
    with pytest.raises(UserError, match=r"--licence MIT: these weights are CC-BY-NC-4\.0, which an export cannot"):
        export(path, to, tmp_path / f"other{ENDING[to]}", licence="MIT")


@pytest.mark.slow
def test_the_licence_of_our_own_weights_is_ours_to_state(tmp_path: Path) -> None:
    own_checkpoint(tmp_path / "last.pt", SMALL)
    assert export(tmp_path / "last.pt", "torchvision", tmp_path / "none.pth").licence is None
    done = export(tmp_path / "last.pt", "safetensors", tmp_path / "w.safetensors", licence="Apache-2.0")
    assert read_weights(done.paths[0]).licence == "Apache-2.0"
    with safe_open(done.paths[0], framework="pt") as file:
        assert file.metadata()["licence"] == "Apache-2.0"


@pytest.mark.slow
def test_the_card_says_what_the_weights_are(tmp_path: Path) -> None:
    own_checkpoint(tmp_path / "last.pt", SMALL)
    knn = {"accuracy": 0.123, "n": 1500}
    path, kind = str(tmp_path / "last.pt"), read_weights(tmp_path / "last.pt").kind
    earlier = {"path": path, "kind": kind.replace("step ", "step 1"), "scores": "another, of an earlier step"}
    networks = [{"path": path, "kind": kind, "scores": knn}, {"path": "/x", "scores": "another"}, earlier]
    probed = {"networks": networks, "test": {"source": "/secret/places", "images": 1500}, "command": ["/secret/resim"]}
    (tmp_path / "probe.json").write_text(json.dumps(probed))
    export(tmp_path / "last.pt", "hub", tmp_path / "hub", licence="Apache-2.0")
    assert {path.name for path in (tmp_path / "hub").iterdir()} == {"model.safetensors", "config.json", "README.md"}
    card = (tmp_path / "hub" / "README.md").read_text()
    header, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert "license: apache-2.0" in header.splitlines()
    for fact in (
        "# quick, resnet18", "1234 images (holidays; fingerprint abcdef)", "3 of 10", '"accuracy": 0.123', '"n": 1500',
        "| licence | Apache-2.0 |", '"source": "places"', "xiao2021region", '"queue_size": 8',
    ):  # fmt: skip
        assert fact in body, fact
    for elsewhere in ("/photographs", str(tmp_path), "/secret", "another"):  # other networks, and where things lie
        assert elsewhere not in card
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert Recipe.from_json(config["recipe"]) == SMALL
    assert "/photographs" not in str(read_weights(tmp_path / "hub").data)
    (tmp_path / "probe.json").unlink()
    export(tmp_path / "last.pt", "safetensors", tmp_path / "w.safetensors")
    plain = (tmp_path / "w.md").read_text()
    assert "There were none when this card was written." in plain
    assert "license:" not in plain
    assert "not stated: to be stated by the publisher of these weights" in plain


def test_probes_of_another_step_are_refused(tmp_path: Path) -> None:
    own_checkpoint(tmp_path / "last.pt", SMALL)
    probes = tmp_path / "mine.json"
    networks = [{"path": str(tmp_path / "last.pt"), "kind": "another step", "scores": 1}, {"path": "/x", "scores": 2}]
    probes.write_text(json.dumps({"networks": networks}))
    with pytest.raises(UserError, match=r"is of another step of .*: run resim probe again"):
        export(tmp_path / "last.pt", "safetensors", tmp_path / "a.safetensors", probes=probes)
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.slow
def test_the_card_of_a_file_does_not_show_the_probes_of_another(tmp_path: Path) -> None:
    own_checkpoint(tmp_path / "last.pt", SMALL)
    probes = tmp_path / "probe.json"
    probes.write_text(json.dumps({"networks": [{"path": str(tmp_path / "other.pt"), "scores": {"knn": 0.987}}]}))
    export(tmp_path / "last.pt", "safetensors", tmp_path / "a.safetensors")
    assert "There were none when this card was written." in (tmp_path / "a.md").read_text()
    export(tmp_path / "last.pt", "safetensors", tmp_path / "b.safetensors", probes=probes)  # a run that was moved
    assert "0.987" in (tmp_path / "b.md").read_text()


# -- whole or not at all


@pytest.mark.slow
def test_features_that_differ_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_checkpoint(tmp_path / "last.pt", SMALL)
    before = set(tmp_path.iterdir())

    def spoilt(weights: Any, *rest: Any) -> Any:
        name = "backbone.layer2.0.bn1.bias"
        tensors = weights.tensors | {name: weights.tensors[name] + 1e-3}
        return write_torchvision(type(weights)(**(vars(weights) | {"tensors": tensors})), *rest)

    monkeypatch.setattr(export_room, "write_timm", spoilt)
    with pytest.raises(UserError, match=r"not written: features in torchvision .* differ by more than 1e-05: C3 "):
        export(tmp_path / "last.pt", "timm", tmp_path / "w.pth")
    assert set(tmp_path.iterdir()) == before


def test_a_writer_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_checkpoint(tmp_path / "last.pt", SMALL)
    (tmp_path / "w.pth").write_bytes(b"old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(to_torchvision, "write_torchvision", full)
    with pytest.raises(UserError, match=r"w.pth: cannot be written \(No space left on device\)"):
        export(tmp_path / "last.pt", "torchvision", tmp_path / "w.pth")
    assert (tmp_path / "w.pth").read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt", "w.pth"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "told"),
    [
        (
            float("nan"),
            r"last\.pt: backbone\.layer1\.0\.conv1\.weight has 36864 of 36864 numbers that are NaN or infinite",
        ),
        (3e38, r"last\.pt: gives features that are not finite \(C2, C3, C4, C5, P3, P4\)"),
    ],
    ids=["weights", "features"],
)
def test_weights_that_are_not_finite_are_not_written(tmp_path: Path, value: float, told: str) -> None:
    model = trained(SMALL)
    with torch.no_grad():
        model.query.backbone.get_parameter("layer1.0.conv1.weight").fill_(value)
    own_checkpoint(tmp_path / "last.pt", SMALL, model)
    with pytest.raises(UserError, match=told):
        export(tmp_path / "last.pt", "torchvision", tmp_path / "w.pth")
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt"}


@pytest.mark.parametrize(("to", "package"), [("timm", "timm"), ("detectron2", "detectron2")])
def test_what_cannot_be_verified_says_so(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, package: str
) -> None:
    own_checkpoint(tmp_path / "last.pt", SMALL)
    real = importlib.import_module

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    monkeypatch.delitem(sys.modules, package, raising=False)
    capsys.readouterr()
    out = tmp_path / "w.pth"
    assert main(["export", str(tmp_path / "last.pt"), "--to", to, "--out", str(out)]) == 0
    assert "could not verify: " in capsys.readouterr().out
    assert out.exists()


# -- the command


@pytest.mark.slow
def test_export_tells_the_differences(capsys: Captured, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "resnet.pth"
    assert main(["export", str(checkpoint), "--to", "torchvision", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"read {checkpoint}: resim checkpoint (quick, resnet18, step 12)"
    told = next(line for line in lines if line.startswith("verified in torchvision"))
    assert told.endswith("largest difference from our features: C2 0.0e+00, C3 0.0e+00, C4 0.0e+00, C5 0.0e+00")
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
    ("words", "told"),
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
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], told: str
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
    assert told in error
    assert error.count("\n") == 1
    assert sorted(Path().rglob("*")) == before


@pytest.mark.slow
def test_an_export_again_takes_the_place_of_the_old_one_and_its_card(tmp_path: Path) -> None:
    own_checkpoint(tmp_path / "last.pt", SMALL)
    for licence in (None, "Apache-2.0"):
        export(tmp_path / "last.pt", "safetensors", tmp_path / "a.safetensors", licence=licence)
    assert read_weights(tmp_path / "a.safetensors").licence == "Apache-2.0"
    assert "license: apache-2.0" in (tmp_path / "a.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("to", ["safetensors", "hub", "timm"])
def test_whoever_may_read_new_files_may_read_an_export(tmp_path: Path, to: Target) -> None:
    own_checkpoint(tmp_path / "last.pt", SMALL)
    (tmp_path / "new").touch()
    exported = export(tmp_path / "last.pt", to, tmp_path / f"a{ENDING[to]}")
    files = [file for path in exported.paths for file in (path.iterdir() if path.is_dir() else [path])]
    assert {file.stat().st_mode for file in files} == {(tmp_path / "new").stat().st_mode}


def test_a_public_name() -> None:
    assert resim.load.__module__ == "resim.exchange.load"
    assert resim.read_weights is read_weights
