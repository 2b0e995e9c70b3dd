"""From Python what the command does: `resim.train_detector`, `probe`, `export` and `compare` on tiny data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import resim
from resim.datasets.records import DetectionData
from resim.probes.config import ProbeConfig
from resim.runs.checkpoints import save_checkpoint
from tiny_detectors import noise, things, tiny_recipe, tiny_run

RECIPE = tiny_recipe(steps=1)
Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DetectionData:
    return things(tmp_path_factory.mktemp("data"), num_images=2)


@pytest.fixture(scope="module")
def detector(data: DetectionData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a detector that was trained for one step."""
    out = tmp_path_factory.mktemp("runs") / "detector"
    result = resim.train_detector(RECIPE, tiny_run(out), data, data, show=False)
    assert (result.out, result.step, result.finished) == (out, 1, True)
    assert set(result.scores) == {"bbox"}
    return out


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny pre-training that has not begun."""
    config = resim.ModelConfig(
        backbone="resnet18", fpn_width=16, queue_size=8, group_size=4, levels=(resim.Level(name="P4", window=32),)
    )
    recipe = resim.Recipe(
        name="tiny", model=config, views=resim.ViewsConfig(image_size=64), optim=resim.OptimConfig(batch_size=4)
    )
    path = tmp_path_factory.mktemp("weights") / "encoder.pt"
    save_checkpoint(path, {"recipe": recipe.to_json(), "step": 0, "model": resim.ReSim(config, seed=0).state_dict()})
    return path


def test_a_detector_is_trained_and_loaded(detector: Path) -> None:
    loaded = resim.load_detector(detector)
    assert (loaded.step, loaded.classes) == (1, ("cat", "dog"))
    assert not loaded.model.training


def test_networks_are_probed(encoder: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "images").mkdir()
    for seed in range(4):
        noise(tmp_path / "images" / f"{seed}.png", seed, width=96, height=96)
    config = ProbeConfig(probes=("health",), image_size=64, pairs=4)
    out = tmp_path / "probe.json"
    content = resim.probe(
        ["random", str(encoder)], tmp_path / "images", config=config, unlabelled=True, out=out, show=False
    )
    assert json.loads(out.read_text()) == json.loads(json.dumps(content))
    assert content["settings"]["probes"] == ("health",)
    assert len(content["networks"]) == 2
    assert capsys.readouterr().out == ""


def test_a_network_without_images_is_refused(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(resim.UserError, match="missing: there is no such"):
        resim.probe([str(encoder)], tmp_path / "missing", unlabelled=True, show=False)
    with pytest.raises(resim.UserError, match=r"probe\.txt: must end in \.json"):
        resim.probe([str(encoder)], tmp_path, out=tmp_path / "probe.txt", show=False)


def test_an_encoder_is_exported(encoder: Path, tmp_path: Path) -> None:
    exported = resim.export(encoder, "torchvision", tmp_path / "resnet.pth", licence="MIT")
    assert exported.licence == "MIT"
    assert exported.differences is not None
    assert max(exported.differences.values()) < 1e-4
    written = torch.load(tmp_path / "resnet.pth", weights_only=True)["state_dict"]["conv1.weight"]
    assert torch.equal(written, resim.read_weights(encoder).tensors["backbone.conv1.weight"])


def test_a_detector_is_exported_whole(detector: Path, tmp_path: Path) -> None:
    exported = resim.export(detector, "safetensors", tmp_path / "detector.safetensors")
    assert exported.differences is not None
    assert "boxes" in exported.differences
    assert resim.load_detector(tmp_path / "detector.safetensors").classes == ("cat", "dog")
    with pytest.raises(resim.UserError, match="is a detector, leave it out"):
        resim.export(detector, "safetensors", tmp_path / "other.safetensors", probes=tmp_path / "probe.json")


@pytest.mark.slow
def test_initialisations_are_compared(data: DetectionData, tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "unused")
    starts = ["random", "again=random"]
    comparison = resim.compare(RECIPE, run, data, data, starts, (0,), tmp_path / "out", replicates=2, show=False)
    assert comparison is not None
    assert (comparison.names, comparison.seeds) == (("random", "again"), (0,))
    (difference,) = comparison.differences
    assert difference.value == 0  # the same weights, the same seed
    assert comparison.scores["random"] == comparison.scores["again"]
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["inits"] == {
        "random": "random",
        "again": "random",
    }


def test_a_comparison_with_one_name_twice_is_refused(data: DetectionData, tmp_path: Path) -> None:
    with pytest.raises(resim.UserError, match="two have the same name"):
        resim.compare(RECIPE, tiny_run(tmp_path), data, data, ["random", "random"], (0,), tmp_path / "out")
