"""Faults of a run's folder, injected into real runs: resumed, they end as one that nothing disturbed, bit for bit."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from end_to_end.runs import DEADLINE, numbers, pretrain_run, state
from equal import same
from resim.datasets.records import DetectionData
from resim.detection.train import train_detector
from resim.distributed.processes import Processes
from resim.errors import UserError
from resim.model.config import ModelConfig
from resim.regions.level import Level
from resim.runs.bars import Watch
from resim.runs.checkpoints import load_checkpoint, save_checkpoint
from resim.runs.config import OptimConfig, Recipe, RunConfig
from resim.runs.lock import lock_folder
from resim.runs.log import read_metrics
from resim.scenes.scenes import write_scenes
from resim.training.pretrain import RunResult, pretrain
from resim.views.config import ViewsConfig
from tiny_detectors import things, tiny_recipe, tiny_run

pytestmark = pytest.mark.slow
Captured = pytest.CaptureFixture[str]

STEPS = 6  # two epochs of three
RECIPE = Recipe(
    name="small",
    model=ModelConfig(
        backbone="resnet18", levels=(Level.parse("P4:window=32,step=16,negatives=all"),), fpn_width=16, conv_width=16,
        dim=16, queue_size=16, group_size=4,
    ),
    views=ViewsConfig(image_size=64),
    optim=OptimConfig(epochs=2, batch_size=4, lr=0.03, seed=5),
)  # fmt: skip


def go(out: Path, images: Path, watch: Watch | None = None, **settings: Any) -> RunResult:
    usual: dict[str, Any] = {
        "device": "cpu", "precision": "float32", "workers": 0, "picture_every": 0, "keep_every": 1,
        "checkpoint_minutes": 0.0,
    }  # fmt: skip
    return pretrain(RECIPE, RunConfig(out=out, **(usual | settings)), [images], watch=watch)


def flip(path: Path, share: float = 0.5, bit: int = 4) -> None:
    data = bytearray(path.read_bytes())
    data[int(share * len(data))] ^= 1 << bit
    path.write_bytes(data)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "made"
    write_scenes(folder, 12, seed=1, width=96, height=72)
    return folder / "images"


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps that nothing disturbs."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert go(out, images).finished
    return out


@pytest.fixture(scope="module")
def stopped(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, stopped after five: previous.pt has four, epoch_0001.pt three."""
    out = tmp_path_factory.mktemp("runs") / "stopped"
    assert go(out, images, stop_after=5).step == 5
    return out


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def ends_as(out: Path, whole: Path) -> None:
    assert same(state(out), state(whole))
    assert numbers(out) == numbers(whole)


@pytest.mark.parametrize(
    ("damaged", "gone", "name", "step"),
    [
        (["last"], [], "previous", 4),
        ([], ["last"], "previous", 4),
        (["last", "previous"], [], "epoch_0001", 3),
        ([], ["last", "previous"], "epoch_0001", 3),
    ],
)
def test_a_damaged_or_missing_checkpoint(
    damaged: list[str], gone: list[str], name: str, step: int, run: Path, whole: Path, images: Path, capsys: Captured
) -> None:
    folder = run / "checkpoints"
    for each in damaged:
        flip(folder / f"{each}.pt")
    for each in gone:
        (folder / f"{each}.pt").unlink()
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    assert go(run, images, resume="auto").finished
    output = capsys.readouterr().out
    assert f"; resumes from checkpoints/{name}.pt, step {step} of {STEPS}\n" in output
    assert f"resumed after step {step}" in output
    assert ("checkpoints/last.pt is damaged (its " in output) == ("last" in damaged)
    ends_as(run, whole)
    assert (run / "metrics.jsonl.cut").read_bytes() == b"".join(lines[step:])
    assert {path.name for path in folder.glob("*.damaged")} == {f"{each}.pt.damaged" for each in damaged}
    assert load_checkpoint(folder / "previous.pt")["step"] == 5


def test_a_run_whose_last_checkpoint_is_damaged_after_its_end(whole: Path, images: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    flip(run / "checkpoints" / "last.pt", 0.9)
    assert go(run, images, resume=True).step == STEPS
    ends_as(run, whole)


def test_weights_to_start_from_that_are_damaged(run: Path, images: Path, tmp_path: Path) -> None:
    flip(run / "checkpoints" / "last.pt")
    with pytest.raises(UserError, match=r"last.pt: damaged: its \d+ bytes do not match the checksum at its end"):
        go(tmp_path / "new", images, start_from=str(run))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("bad", [bytes(64) + b"\n", b'{"step": 2, "\xff\n', b'{"loss/total": 1.0}\n'])
def test_damaged_metrics(bad: bytes, run: Path, whole: Path, images: Path, capsys: Captured) -> None:
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join([*lines[:2], bad, *lines[3:]]))
    assert go(run, images, resume=True).finished
    assert "metrics.jsonl: 1 damaged or incomplete line (number 3) moved to" in capsys.readouterr().out
    assert (run / "metrics.jsonl.cut").read_bytes() == bad
    assert same(state(run), state(whole))
    assert numbers(run) == [line for line in numbers(whole) if line["step"] != 2]


def test_a_config_that_is_gone_is_named_before_the_images(run: Path, tmp_path: Path) -> None:
    (run / "config.json").unlink()
    with pytest.raises(UserError, match=r"contains checkpoints/epoch_0001.pt but no config.json"):
        go(run, tmp_path / "no-such-folder", resume=True)


def test_a_restart_right_after_a_kill(images: Path, tmp_path: Path) -> None:
    """The lock is free as soon as the training process is gone, and its loader processes end with it."""
    out = tmp_path / "run"
    options = ["--batch-size", "4", "--epochs", "500", "--checkpoint-minutes", "0"]
    run = pretrain_run(images, out, *options, "--workers", "2")
    run.wait_for_step(2)
    children = [int(word) for word in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]
    assert len(children) >= 2
    os.kill(run.pid, signal.SIGKILL)
    assert run.end().code == -signal.SIGKILL
    alone = Processes(rank=0, count=1, device=torch.device("cpu"), cores=1)
    with lock_folder(out, alone):  # no waiting
        pass
    deadline = time.monotonic() + DEADLINE
    while any(_is_running(child) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    step = state(out)["step"]
    resumed = pretrain_run(images, out, *options, "--resume", "auto", "--stop-after", "1").end()
    assert resumed.code == 0, resumed.err
    assert state(out)["step"] == step + 1


def _is_running(process: int) -> bool:
    """Whether a process exists and is not the remainder of one that has ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def _save_within_limit(path: Path) -> None:
    """Save a megabyte where files end after 200 kB: the write fails as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    try:
        save_checkpoint(path, {"resim": "0", "step": 9, "weights": torch.ones(250_000)}, keep_old_as="previous.pt")
    except UserError as error:
        expected = f"{path}: cannot be written (File too large)"
        os._exit(3 if str(error) == expected else 4)
    os._exit(5)


def test_a_write_that_fails_halfway_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"resim": "0", "step": 8})
    process = multiprocessing.get_context("fork").Process(target=_save_within_limit, args=(path,))
    process.start()
    process.join(DEADLINE)
    assert process.exitcode == 3
    assert load_checkpoint(path) == {"resim": "0", "step": 8}
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_metrics_on_a_full_disk(whole: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    metrics, kept = out / "metrics.jsonl", out / "kept"

    def fill_disk(done: int, steps: int) -> None:
        if done == 2:
            metrics.rename(kept)
            metrics.symlink_to("/dev/full")  # every write to it fails as on a full disk

    with pytest.raises(UserError, match=r"metrics.jsonl: cannot be written \(No space left on device\)"):
        go(out, images, watch=fill_disk, log_every=1)
    kept.replace(metrics)
    assert state(out)["step"] == 2
    assert go(out, images, resume=True).finished
    ends_as(out, whole)


def test_images_of_which_none_can_be_decoded(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.jpg").write_text("no picture")
    with pytest.raises(UserError, match="20 images in a row cannot be decoded"):
        go(tmp_path / "run", folder)
    listed = (tmp_path / "run" / "bad_files.txt").read_text().splitlines()
    assert listed
    assert {line.partition("\t")[0] for line in listed} <= {str(path) for path in folder.iterdir()}


# -- detectors


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DetectionData:
    return things(tmp_path_factory.mktemp("data"), num_images=4)


def tune(out: Path, data: DetectionData, **settings: Any) -> None:
    settings = {"eval_every": 2, "checkpoint_minutes": 0.0} | settings
    train_detector(tiny_recipe(steps=4), tiny_run(out, **settings), data, data, init="random:quick")


@pytest.fixture(scope="module")
def tuned(data: DetectionData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuned") / "run"
    tune(out, data)
    return out


def test_a_detector(tuned: Path, data: DetectionData, tmp_path: Path, capsys: Captured) -> None:
    """Its folder has a damaged checkpoint, damaged metrics and scores, and files that a killed run has left."""
    out = tmp_path / "run"
    tune(out, data, stop_after=3)
    capsys.readouterr()
    flip(out / "checkpoints" / "last.pt")
    (out / "checkpoints" / ".last.pt.a1b2c3d4.tmp").write_bytes(b"half")
    lines = (out / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (out / "metrics.jsonl").write_bytes(b"".join([*lines[:2], bytes(9) + b"\n", lines[2]]))
    with (out / "scores.jsonl").open("ab") as file:
        file.write(b"\xff\xfe\n")
    tune(out, data, resume="auto")
    output = capsys.readouterr().out
    assert "; resumes from checkpoints/previous.pt, step 2 of 4\n" in output
    assert "metrics.jsonl: 1 line after step 2 and 1 damaged or incomplete line (number 3) moved to" in output
    assert "scores.jsonl: 1 damaged or incomplete line (number 2) moved to" in output
    assert same(state(out), state(tuned))
    assert numbers(out) == numbers(tuned)
    assert (out / "scores.jsonl").read_text() == (tuned / "scores.jsonl").read_text()
    names = {path.name for path in (out / "checkpoints").iterdir()}
    assert names == {"last.pt", "previous.pt", "last.pt.damaged"}


def test_a_detector_without_its_checkpoints(tuned: Path, data: DetectionData, tmp_path: Path) -> None:
    out = Path(shutil.copytree(tuned, tmp_path / "run"))
    for path in (out / "checkpoints").iterdir():
        path.unlink()
    before = [line["step"] for line in read_metrics(out / "metrics.jsonl")]
    message = r"has no checkpoint, though .+ has steps up to 3 and one was written after step 2 at the latest"
    with pytest.raises(UserError, match=message):
        tune(out, data, resume=True)
    assert [line["step"] for line in read_metrics(out / "metrics.jsonl")] == before


def test_photographs_of_which_none_can_be_decoded(tmp_path: Path) -> None:
    data = things(tmp_path / "data", num_images=4)
    paths = [record.image for record in data.records]
    for path in paths:
        Path(path).write_text("no picture")
    with pytest.raises(UserError, match="cannot be decoded"):
        tune(tmp_path / "run", data)
    listed = (tmp_path / "run" / "bad_files.txt").read_text().splitlines()
    assert listed
    assert {line.partition("\t")[0] for line in listed} <= set(paths)
    assert (tmp_path / "run" / "bad_images.json").exists()
