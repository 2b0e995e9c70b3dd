"""Advice on a recipe for a number of images, and the forecast of its duration, with numbers worked out by hand."""

from __future__ import annotations

import dataclasses
import itertools
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

from resim import recipes
from resim.cli.main import main
from resim.detection.train import train_detector
from resim.distributed.processes import Processes
from resim.runs.config import Recipe
from resim.runs.forecast import forecast, in_two_units
from resim.runs.log import Log
from resim.runs.progress import Progress
from resim.training.advice import PUBLISHED_PAIRS, advise, fitted_command, program_words
from tiny_detectors import things, tiny_recipe, tiny_run

Captured = pytest.CaptureFixture[str]


def quick(**changes: Any) -> Recipe:
    recipe = recipes.quick()
    model = {name: changes.pop(name) for name in list(changes) if hasattr(recipe.model, name)}
    return dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, **model),
        optim=dataclasses.replace(recipe.optim, **changes),
    )


# -- the recipe


def test_published_recipes_fit_their_data_sets() -> None:
    for make in (recipes.resim_fpn, recipes.resim_c4, recipes.moco_v2):
        assert advise(make(), 1_281_167, processes=8) == advise(make(), 1_281_167)
        assert advise(make(), 1_281_167).reasons == ()
    assert advise(recipes.quick(), 512).reasons == ()


def test_a_queue_larger_than_the_images() -> None:
    advice = advise(quick(queue_size=2048), 1000)
    assert advice.options == {"--queue-size": "512"}
    (reason,) = advice.reasons
    assert reason.startswith("the queue of 2048 keys is larger than the data set of 1000 images")
    assert advise(quick(queue_size=1000), 1000).reasons == ()


def test_too_few_steps_for_the_key_encoder() -> None:
    # 4 steps an epoch, 10 epochs: 0.99 ** 40 = 0.67 of the key encoder stay; 0.05 are left after 299 steps
    advice = advise(quick(queue_size=128), 128)
    assert advice.options == {"--epochs": "75"}
    assert advice.reasons == (
        "40 steps are few for --key-momentum 0.99: at the end the key encoder is still 67% its initial weights: set "
        "--epochs 75",
    )
    # from epoch 8 on 8 steps: 75 epochs more
    assert advise(quick(queue_size=128), 128, start_epoch=8).options == {"--epochs": "83"}
    # 0.999 would need 2995 steps, 749 epochs; 0.99 needs 75
    advice = advise(quick(queue_size=128, key_momentum=0.999), 128)
    assert advice.options == {"--key-momentum": "0.99", "--epochs": "75"}
    assert advise(quick(queue_size=128, key_momentum=0.0), 128).reasons == ()


def test_a_length_far_above_the_published_one() -> None:
    advice = advise(recipes.resim_fpn(), 12_811_670)
    assert advice.options == {"--epochs": "20"}
    assert "200 epochs of 12811670 images are 10 times the length of the published pre-training" in advice.reasons[0]
    assert PUBLISHED_PAIRS == 256_233_400


def test_images_that_every_epoch_leaves_out() -> None:
    # 500 images: one step of 256 and 244 left out; 32 gives 15 steps and leaves 20 out
    advice = advise(dataclasses.replace(recipes.resim_fpn(), model=recipes.quick().model), 500)
    assert advice.options == {"--batch-size": "32", "--lr": "0.00375"}
    assert advice.reasons[0] == (
        "244 of 500 images are left out of every epoch, as they do not fill a batch of 256: set --batch-size 32"
    )
    assert (
        advise(dataclasses.replace(recipes.resim_fpn(), model=recipes.quick().model), 500, processes=2).options[
            "--batch-size"
        ]
        == "64"
    )


def test_the_linear_rule_is_named() -> None:
    advice = advise(quick(batch_size=64), 1024)
    assert advice.reasons == (
        "--lr 0.03 is meant for a batch of 32 and is not rescaled: for 64 the linear rule gives --lr 0.06",
    )
    assert advise(quick(batch_size=64, lr=0.06), 1024).reasons == ()
    assert advise(dataclasses.replace(quick(batch_size=64), name="mine"), 1024).reasons == ()


# -- the command


def test_the_command_keeps_the_words_of_the_user(tmp_path: Path) -> None:
    command = ["resim", "pretrain", "my photos", "--queue-size", "99", "--epochs=3", "--levels", "P4", "P3"]
    line = fitted_command(command, {"--queue-size": "64", "--epochs": "75"}, out_is_used=True)
    assert line == "resim pretrain 'my photos' --levels P4 P3 --queue-size 64 --epochs 75"
    assert fitted_command(["x", "--queue_size", "9"], {"--queue-size": "8"}, out_is_used=True) == "x --queue-size 8"
    assert fitted_command([], {"--queue-size": "64"}, out_is_used=True) == "--queue-size 64"


def test_a_folder_that_is_in_use_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a-2").mkdir()
    command = ["resim", "pretrain", "DIR", "--out", str(tmp_path / "a"), "--resume", "auto"]
    line = fitted_command(command, {"--epochs": "75"}, out_is_used=True)
    assert line == f"resim pretrain DIR --resume auto --epochs 75 --out {tmp_path / 'a-3'}"
    assert f"--out {tmp_path / 'a'} " in fitted_command(command, {"--epochs": "75"}, out_is_used=False)


def test_the_words_that_start_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.argv", ["/here/src/resim/__main__.py", "pretrain"])
    assert program_words() == ["python", "-m", "resim"]
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("sys.argv", [".venv/bin/resim", "pretrain"])
    assert program_words() == [".venv/bin/resim"]
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/resim")
    assert program_words() == ["resim"]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert program_words() == ["torchrun", "--nproc-per-node", "8", "-m", "resim"]
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert program_words() == []


def test_fewer_images_than_a_batch_get_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr("sys.argv", ["resim"])
    for number in range(12):
        Image.new("RGB", (40, 40)).save(tmp_path / f"{number}.png")
    for group, remedy in ((4, "--batch-size 12"), (16, "--batch-size 12 --group-size 12")):
        words = ["pretrain", str(tmp_path), "--recipe", "quick", "--batch-size", "16", "--group-size", str(group)]
        assert main(words) == 2
        error = capsys.readouterr().err
        assert f"12 images are fewer than one batch of 16: set {remedy}, or add images; this fits: resim" in error
        # 12 of quick's 32 at lr 0.03; one step an epoch: 299 epochs
        assert error.endswith(f"{remedy} --queue-size 8 --lr 0.01125 --epochs 299\n")
        assert f"pretrain {tmp_path} --recipe quick" in error


# -- the length


def test_lengths_in_two_units() -> None:
    seconds = (0, 12.4, 245, 3600, 3 * 3600 + 20 * 60 + 59, 51 * 3600, -5)
    assert [in_two_units(s) for s in seconds] == [
        "0 s",
        "12 s",
        "4 min 5 s",
        "1 h 0 min",
        "3 h 20 min",
        "2 d 3 h",
        "0 s",
    ]


def test_the_forecast_says_how_long_and_what_limits() -> None:
    now = time.mktime((2026, 3, 1, 12, 0, 0, 0, 0, -1))
    text = forecast(seconds=8.0, steps=4, left=1800, waiting=0.02, workers=4, now=now)
    assert text == (
        "all of it takes about 1 h 0 min, until Sun 01 Mar 2026 13:00; the step limits (2% of the time is spent "
        "waiting for images)"
    )
    text = forecast(seconds=8.0, steps=4, left=1800, waiting=0.4, workers=4, now=now)
    assert text.endswith(
        "the loader limits (40% of the time is spent waiting for images; 4 loader processes): raise --workers, or "
        "measure by resim bench"
    )


@pytest.mark.parametrize(("device", "readings"), [("cpu", 2), ("cuda", 6)])
def test_the_forecast_is_printed_once_after_the_first_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured, device: str, readings: int
) -> None:
    clock = itertools.count()
    monkeypatch.setattr("resim.runs.log.time.perf_counter", lambda: float(next(clock)))
    alone = Processes(rank=0, count=1, device=torch.device(device), cores=1)
    console = Console(width=200, force_terminal=False)
    with Progress(steps=200, epoch_steps=200, console=console) as progress:
        log = Log(tmp_path, alone, progress, batch_size=4, epoch_steps=200, end=200, workers=0)
        log.start(0)
        printed = []
        for reading in range(9):
            for step in range(10 * reading, 10 * reading + 10):
                log.add(step, 0.1, {"total": torch.tensor(1.0)})
            log.flush()
            printed.append("all of it takes" in capsys.readouterr().out)
        log.close()
    assert [number for number, is_printed in enumerate(printed, start=1) if is_printed] == [readings]


# -- detectors


@pytest.mark.slow
def test_a_detectors_batch_names_the_linear_rule(tmp_path: Path, capsys: Captured) -> None:
    data, recipe = things(tmp_path / "data", 2), tiny_recipe(steps=1)
    recipe = dataclasses.replace(recipe, name="quick", tune=dataclasses.replace(recipe.tune, lr=0.02))
    train_detector(recipe, tiny_run(tmp_path / "a"), data, None)
    warning = (
        "warning: --lr 0.02 is quick's for a batch of 8 and is not rescaled: for 2 the linear rule gives --lr 0.005"
    )
    assert warning in capsys.readouterr().out
    scaled = dataclasses.replace(recipe, tune=dataclasses.replace(recipe.tune, lr_batch=8))
    train_detector(scaled, tiny_run(tmp_path / "b"), data, None)
    assert "linear rule" not in capsys.readouterr().out
