"""A file system that hangs in the middle of a run: what is said, and that SIGTERM and SIGINT save and end the run."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from forked import Forked
from resim.model.config import ModelConfig
from resim.runs.config import OptimConfig, Recipe, RunConfig
from resim.training.pretrain import pretrain
from resim.views import loader, waiting
from resim.views.config import ViewsConfig
from thin_resnets import ThinResNet, resnets_of

pytestmark = pytest.mark.slow

IMAGES, BATCH, EPOCHS = 16, 4, 3
END_SECONDS = 30  # torchrun kills what needs longer


def pretrain_tiny(
    images: Path, out: Path, *, workers: int, resume: Literal["no", "yes"], epochs: int = EPOCHS,
    watch: Callable[[int, int], None],
) -> int:  # fmt: skip
    """A pre-training in this process; its end is printed."""
    recipe = Recipe(
        name="tiny",
        model=ModelConfig(
            backbone="resnet18", levels=(), queue_size=16, group_size=BATCH // int(os.environ["WORLD_SIZE"]), dim=8
        ),
        views=ViewsConfig(image_size=32),
        optim=OptimConfig(epochs=epochs, batch_size=BATCH, seed=5),
    )
    run = RunConfig(
        out=out, resume=resume, device="cpu", precision="float32", workers=workers, slow_read_seconds=0.2,
        picture_every=0, log_every=1, kernels="off", keep_memory=False,
    )  # fmt: skip
    with resnets_of(ThinResNet):
        result = pretrain(recipe, run, images, watch=watch, show=False)
    print("finished" if result.finished else "stopped", result.step, flush=True)
    return 0


def pretrain_or_hang(words: list[str]) -> int:
    """From the second step on, half of the images hang, if the last word is "hang"."""
    images, out, workers, resume, hang = words
    open_photo, waiting.STOP_SECONDS = loader.Photo, 0.5

    def open_or_hang(path: Any, **settings: Any) -> Any:
        while hang == "hang" and Path(images, "hang").exists() and int(Path(path).stem) % 2:
            if os.environ["RANK"] != str(int(os.environ["WORLD_SIZE"]) - 1):
                break  # of two processes, the second one's file system hangs
            time.sleep(0.05)
        return open_photo(path, **settings)

    def watch(done: int, steps: int) -> None:
        if done == 2:
            Path(images, "hang").touch()

    loader.Photo = open_or_hang  # type: ignore[misc, assignment]
    return pretrain_tiny(
        Path(images), Path(out), workers=int(workers), resume="yes" if resume == "yes" else "no", watch=watch
    )


def start(images: Path, out: Path, workers: int, resume: str, hang: str = "hang", processes: int = 1) -> Forked:
    (images / "hang").unlink(missing_ok=True)
    return Forked([str(images), str(out), str(workers), resume, hang], processes, act=pretrain_or_hang)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    return folder


def state_of(out: Path) -> dict[str, torch.Tensor]:
    state = torch.load(out / "checkpoints" / "last.pt", weights_only=True)
    return state["model"]


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def processes(request: pytest.FixtureRequest) -> int:
    """The number of processes of a run."""
    return request.param


@pytest.fixture(scope="module")
def uninterrupted(images: Path, processes: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing stopped."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert start(images, out, 0, "no", "never", processes).end(120) == (0, "finished 12\n" * processes, "")
    return out


@pytest.mark.parametrize(
    ("workers", "number"),
    [(1, signal.SIGTERM), pytest.param(2, signal.SIGINT, marks=pytest.mark.long), (0, signal.SIGINT)],
)
def test_a_signal_saves_and_ends_a_run_whose_loader_hangs_and_it_resumes_bit_equal(
    images: Path, uninterrupted: Path, tmp_path: Path, processes: int, workers: int, number: int
) -> None:
    out = tmp_path / "run"
    run = start(images, out, workers, "no", processes=processes)
    try:
        named = Path(run.wait_for_line("has been read for").partition(": ")[0])  # while it is waited for
        assert named.parent == images
        assert int(named.stem) % 2 == 1
        for pid in run.pids:
            os.kill(pid, number)
        code, output, err = run.end(END_SECONDS)
    finally:
        run.kill()
    assert code == 0, err
    ends = set(output.splitlines())
    assert len(ends) == 1
    word, step = ends.pop().split()
    assert word == "stopped", err
    assert 2 <= int(step) < 12
    assert len((out / "metrics.jsonl").read_text().splitlines()) == int(step)
    assert not (out / "bad_files.txt").exists()  # nothing was replaced

    assert start(images, out, workers, "yes", "never", processes).end(120)[1] == "finished 12\n" * processes
    whole, resumed = state_of(uninterrupted), state_of(out)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    losses = [
        [json.loads(text)["loss/total"] for text in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (uninterrupted, out)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 12


def pretrain_with_pipes(words: list[str]) -> int:
    """From the second step on, half of the images are pipes."""
    images, out = map(Path, words)

    def watch(done: int, steps: int) -> None:
        if done == 2:
            for path in sorted(images.glob("*[13579].png")):
                path.unlink()
                os.mkfifo(path)

    return pretrain_tiny(images, out, workers=2, resume="no", epochs=40, watch=watch)


def test_images_that_become_pipes_during_a_run_are_counted_and_the_run_stops(images: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "images", tmp_path / "run"
    folder.mkdir()
    for path in sorted(images.glob("*.png")):
        (folder / path.name).write_bytes(path.read_bytes())
    code, _, err = Forked([str(folder), str(out)], act=pretrain_with_pipes).end(120)
    assert code == 1  # the UserError of the function `pretrain`
    assert "files read cannot be decoded, more than --max-bad-share 0.1" in err
    listed = (out / "bad_files.txt").read_text().splitlines()
    assert listed
    assert all(line.endswith("\ta named pipe, not a file") for line in listed)
    assert all(Path(line.partition("\t")[0]).name[1] in "13579" for line in listed)
