"""Probes during pre-training: they do not change the training, are written once, and report a collapse."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from resim.cli.main import main
from resim.errors import UserError
from resim.model.encoder import ModelConfig
from resim.model.resim import ReSim
from resim.probes.features import Network, pooled_features
from resim.probes.online import OnlineProbe
from resim.recipes import quick
from resim.regions.level import Level
from resim.runs.checkpoints import load_checkpoint
from resim.runs.config import OptimConfig, Recipe, RunConfig, read_run_settings
from resim.runs.log import read_metrics
from resim.training.pretrain import pretrain

RECIPE = dataclasses.replace(
    quick(),
    model=ModelConfig(
        backbone="resnet18", levels=(Level(name="P4", window=32, step=16),), fpn_width=16, dim=16, queue_size=16,
        group_size=4,
    ),
    views=dataclasses.replace(quick().views, image_size=64),
    optim=OptimConfig(epochs=3, batch_size=4, lr=0.01),
)  # fmt: skip
SETTINGS = RunConfig(device="cpu", precision="float32", workers=0, picture_every=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of four images."""
    home = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (home / name).mkdir()
        for i in range(4):
            coarse = rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((100, 80), Image.Resampling.BICUBIC).save(home / name / f"{i}.png")
    return home


def ended(folder: Path, out: Path, *, probed: bool = True, recipe: Recipe = RECIPE, **settings: Any) -> Path:
    run = dataclasses.replace(SETTINGS, out=out, **settings)
    pretrain(recipe, run, folder, show=False, probe=OnlineProbe if probed else None)
    return out


@pytest.fixture(scope="module")
def plain(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ended(folder, tmp_path_factory.mktemp("plain") / "run", probed=False)


@pytest.fixture(scope="module")
def probed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ended(folder, tmp_path_factory.mktemp("probed") / "run", probe_every=2, probe_data=folder)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "probes.jsonl").read_text().splitlines()]


def same_result(a: Path, b: Path) -> bool:
    """Weights, optimiser, queue and losses, bit for bit."""
    ours, theirs = (load_checkpoint(out / "checkpoints" / "last.pt") for out in (a, b))
    tensors = all(value.equal(theirs["model"][name]) for name, value in ours["model"].items())
    buffers = [
        state["momentum_buffer"].equal(theirs["optimizer"]["state"][i]["momentum_buffer"])
        for i, state in ours["optimizer"]["state"].items()
    ]
    losses = [
        [{name: value for name, value in line.items() if "/" in name} for line in read_metrics(out / "metrics.jsonl")]
        for out in (a, b)
    ]
    return tensors and all(buffers) and len(buffers) > 60 and losses[0] == losses[1] and len(losses[0]) == 6


@pytest.mark.slow
def test_probes_do_not_change_a_run(plain: Path, probed: Path) -> None:
    assert same_result(plain, probed)
    assert not (plain / "probes.jsonl").exists()


@pytest.mark.slow
def test_readings_are_taken_when_due(probed: Path) -> None:
    records = lines(probed)
    # two steps per epoch; all probes every second epoch and after the last, the queue after every epoch
    assert [line["step"] for line in records] == [0, 2, 4, 6]
    assert [line["epoch"] for line in records] == [0, 1, 2, 3]
    assert ["knn/C5" in line for line in records] == [True, False, True, True]
    assert ["queue/spread" in line for line in records] == [False, True, True, True]
    assert [line.get("queue/age") for line in records] == [None, 1, 3, 3]
    names = {"correspondence/P4", "median_error_px/P4", "rank/global", "spread/C5", "alignment/P4", "uniformity/global"}
    assert all(names <= set(line) for line in records if line["step"] != 2)
    assert all(0 <= value <= 1 for line in records for name, value in line.items() if name.startswith("knn/"))


def test_readings_are_in_tensorboard(probed: Path) -> None:
    events = b"".join(file.read_bytes() for file in (probed / "tensorboard").iterdir())
    assert b"probe/correspondence/P4" in events


@pytest.mark.slow
def test_without_data_views_of_the_training_images_are_compared(folder: Path, tmp_path: Path, plain: Path) -> None:
    out = ended(folder, tmp_path / "run", probe_every=1)
    assert [line["step"] for line in lines(out)] == [0, 2, 4, 6]
    assert all("correspondence/P4" in line and "knn/C5" not in line for line in lines(out))
    assert same_result(plain, out)


@pytest.mark.slow
def test_a_resumed_run_has_each_reading_once(folder: Path, tmp_path: Path, probed: Path, plain: Path) -> None:
    out = tmp_path / "run"
    for resume, stop in ((False, 2), (True, 3), (True, 0)):  # at the end of an epoch, in the midst of one, at the end
        ended(folder, out, probe_every=2, probe_data=folder, resume=resume, stop_after=stop)
    assert same_result(plain, out)
    for ours, theirs in zip(lines(out), lines(probed), strict=True):
        assert ours == theirs


@pytest.mark.slow
def test_readings_after_the_checkpoint_are_dropped_on_resume(folder: Path, tmp_path: Path, probed: Path) -> None:
    out = ended(folder, tmp_path / "run", probe_every=2, probe_data=folder, stop_after=3)
    with (out / "probes.jsonl").open("a") as file:
        file.write('{"step": 4, "epoch": 2, "knn/C5": 99.0}\n{"step": 5, "epo')
    ended(folder, out, probe_every=2, probe_data=folder, resume=True)
    assert lines(out) == lines(probed)


def test_the_settings_are_stored_with_the_run(probed: Path, folder: Path) -> None:
    settings = read_run_settings(probed / "config.json")
    assert (settings.probe_every, settings.probe_data, settings.probe_images) == (2, folder, 1024)


def probe_of(folder: Path, **settings: Any) -> OnlineProbe:
    run = dataclasses.replace(SETTINGS, **settings)
    return OnlineProbe(RECIPE, run, "float32", [str(p) for p in sorted(folder.rglob("*.png"))], 2)


def test_the_model_is_not_changed(folder: Path) -> None:
    model = ReSim(RECIPE.model).train()
    model.query.head.eval()  # modules may differ in their mode
    modes = {name: module.training for name, module in model.named_modules()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch_state, numpy_state = torch.random.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    reading = probe_of(folder, probe_every=1)(model, 0)
    assert "correspondence/P4" in reading.values
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.random.get_rng_state().equal(torch_state)
    assert str(np.random.get_state()) == numpy_state  # noqa: NPY002


def test_the_queue_is_measured_after_every_epoch_and_a_collapse_is_reported(folder: Path) -> None:
    model, probe = ReSim(RECIPE.model), probe_of(folder)
    model.queue_position.fill_(8)
    assert probe(model, 2).lines == ()
    assert set(probe(model, 2).values) == {"queue/age", "queue/rank", "queue/spread"}
    model.queue.copy_(model.queue[:1].expand(16, -1))  # all keys are equal
    (line,) = probe(model, 4).lines
    assert line.startswith("collapse: the last keys of all 16 images are nearly equal (spread 0.00 of 1)")


def test_in_a_queue_that_is_not_full_only_keys_are_measured(folder: Path) -> None:
    model, probe = ReSim(RECIPE.model), probe_of(folder)
    model.queue[:4] = model.queue[:1].clone()
    model.queue_position.fill_(4)
    assert probe(model, 1).values["queue/spread"] == pytest.approx(0, abs=1e-3)
    model.queue_position.fill_(8)
    assert probe(model, 2).values["queue/spread"] > 0.3


@pytest.mark.slow
def test_a_collapse_of_the_encoder_is_reported(folder: Path) -> None:
    model, probe = ReSim(RECIPE.model), probe_of(folder, probe_every=1)
    parameters = dict(model.query.named_parameters())
    spread = "spread/global"
    with torch.no_grad():
        # vectors of an untrained network are similar; without their mean they are spread
        network = Network(name="", encoder=model.query.eval())
        vectors = pooled_features(network, probe.pairs, size=64).vectors["global"]
        parameters["head.2.bias"].sub_(vectors.mean(dim=0))
        first = probe(model, 0)
        parameters["head.2.weight"].zero_()
        parameters["head.2.bias"].fill_(1.0)
        second = probe(model, 6)
    assert first.values[spread] > 0.9
    assert len(first.lines) == 1
    assert second.values[spread] == pytest.approx(0, abs=1e-4)
    assert second.lines[1].startswith(
        "collapse: the global vectors of all 8 images are nearly equal (spread 0.00 of 1); the spread was "
    )


def test_an_untrained_network_is_not_reported_as_collapsed(folder: Path) -> None:
    probe = probe_of(folder, probe_every=1)
    assert [line.partition(":")[0] for line in probe(ReSim(RECIPE.model), 0).lines] == ["probes before the first step"]


def test_images_that_no_longer_exist_do_not_stop_a_run(folder: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    for i in range(4):
        Image.new("RGB", (80, 80), (i * 50, 0, 0)).save(gone / f"{i}.png")
    probe = probe_of(folder, probe_every=1, probe_data=gone)
    for file in gone.iterdir():
        file.unlink()
    reading = probe(ReSim(RECIPE.model), 2)
    assert len(reading.lines) == 1
    assert reading.lines[0].startswith("probes after step 2: ")
    assert "queue/rank" in reading.values


# -- errors


def test_probe_data_that_cannot_be_read_is_an_error_before_anything_is_written(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    argv = ["pretrain", str(folder), "--recipe", "quick", "--batch-size", "4", "--group-size", "4", "--out", str(out)]
    for options, message in (
        (["--probe-data", str(tmp_path / "gone")], "gone: there is no such folder or file"),
        (["--image-size", "48", "--levels", "P4:window=32,step=16"], "probes need views of at least 64 px"),
        (["--probe-images", "-1"], "probe-images -1: must be at least 0"),
    ):
        assert main([*argv, "--probe-every", "1", *options]) == 2
        assert message in capsys.readouterr().err
        assert not out.exists()


def test_asking_for_probes_needs_one() -> None:
    with pytest.raises(ValueError, match="probe_every needs a probe"):
        pretrain(RECIPE, RunConfig(probe_every=1), "nowhere")


def test_views_too_small_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="at least 64 px"):
        OnlineProbe(
            dataclasses.replace(RECIPE, views=dataclasses.replace(RECIPE.views, image_size=50)),
            dataclasses.replace(SETTINGS, probe_every=1), "float32", [], 2,
        )  # fmt: skip
