"""Run folders of earlier versions are read and resumed. tests/data/README.md says what they contain."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from resim.exchange.encoders import load_encoders
from resim.model.resim import ReSim
from resim.regions.level import Level
from resim.runs.checkpoints import load_checkpoint, save_checkpoint
from resim.runs.config import Recipe, RunConfig, read_recipe, read_run_settings
from resim.runs.log import read_metrics
from resim.training.pretrain import pretrain

RUN = Path(__file__).resolve().parents[1] / "data" / "run_of_0_1"


def test_the_recipe_and_the_settings_are_read() -> None:
    recipe = read_recipe(RUN / "config.json")
    assert (recipe.name, recipe.model.backbone, recipe.model.queue_size) == ("quick", "resnet18", 4)
    assert recipe.model.levels == (
        Level(name="P4", window=32, step=16, negatives="all"),
        Level(name="P3", window=16, step=16, negatives="group"),
    )
    assert (recipe.views.image_size, recipe.views.blur_sigma) == (64, (0.1, 1.0))
    assert (recipe.optim.epochs, recipe.optim.batch_size, recipe.optim.lr) == (4, 4, 0.03)
    settings = read_run_settings(RUN / "config.json")
    assert (settings.kernels, settings.picture_every, settings.probe_images) == ("auto", 0, 1024)
    assert (settings.resume, settings.out, settings.workers) == (False, None, -1)  # these belong to an invocation


def test_the_metrics_are_read() -> None:
    first, second = read_metrics(RUN / "metrics.jsonl")
    assert (first["step"], second["step"], second["epoch"], second["epoch_progress"]) == (0, 1, 1, 1.0)
    for line in (first, second):
        losses = line["loss/instance"] + line["loss/P4"] + line["loss/P3"]
        assert line["loss/total"] == pytest.approx(losses, rel=1e-5)


def test_the_checkpoint_fits_the_network() -> None:
    state = load_checkpoint(RUN / "checkpoints" / "last.pt")
    assert (state["resim"], state["precision"], state["step"], state["epoch"]) == ("0.1.0", "float32", 2, 2)
    recipe = Recipe.from_json(state["recipe"])
    model = ReSim(recipe.model, seed=0)
    model.load_state_dict(state["model"])  # strict: every name and shape
    assert torch.equal(model.queue, state["model"]["queue"])
    moments = state["optimizer"]["state"]
    shapes = [tuple(moments[index]["momentum_buffer"].shape) for index in range(len(moments))]
    assert shapes == [tuple(parameter.shape) for parameter in model.query.parameters()]


@pytest.fixture(scope="module")
def dense_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the folder whose tensors each have storage in the network's memory format, as the run wrote them."""

    def dense(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: dense(item) for name, item in value.items()}
        if not isinstance(value, torch.Tensor):
            return value
        return value.clone(memory_format=torch.channels_last if value.ndim == 4 else torch.contiguous_format)

    out = tmp_path_factory.mktemp("old") / "run"
    shutil.copytree(RUN, out)
    save_checkpoint(out / "checkpoints" / "last.pt", dense(load_checkpoint(RUN / "checkpoints" / "last.pt")))
    return out


@pytest.mark.slow
def test_the_encoder_is_loaded(dense_run: Path) -> None:
    (loaded,) = load_encoders([str(dense_run)])
    assert (loaded.config.backbone, loaded.has_head) == ("resnet18", True)
    weight = load_checkpoint(RUN / "checkpoints" / "last.pt")["model"]["query.backbone.conv1.weight"]
    assert torch.equal(loaded.encoder.backbone.get_parameter("conv1.weight"), weight)


@pytest.mark.slow
def test_the_run_is_resumed(dense_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, images = Path(shutil.copytree(dense_run, tmp_path / "run")), tmp_path / "images"
    images.mkdir()
    for number in range(4):  # a data set is known by its names
        Image.effect_noise((48, 48), 60.0 + number).convert("RGB").save(images / f"{number}.png")
    run = RunConfig(out=out, resume=True, device="cpu", workers=0, picture_every=0, stop_after=1)
    result = pretrain(read_recipe(out / "config.json"), run, [images])
    assert (result.step, result.finished) == (3, False)
    assert "resumed after step 2" in capsys.readouterr().out
    lines = read_metrics(out / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert lines[:2] == read_metrics(RUN / "metrics.jsonl")
    assert math.isfinite(lines[2]["loss/total"])
    assert load_checkpoint(out / "checkpoints" / "last.pt")["step"] == 3
    resumed = [json.loads(line)["step"] for line in (out / "resumed.jsonl").read_text().splitlines()]
    assert resumed == [1, 2]
