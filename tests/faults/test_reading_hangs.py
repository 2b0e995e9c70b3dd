"""A file system that hangs in the middle of a run: what is said, and that SIGTERM and SIGINT save and end the run."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.slow

IMAGES, BATCH, EPOCHS = 16, 4, 3
DRIVER = """
import os, sys, time
from pathlib import Path
from resim.model.config import ModelConfig
from resim.runs.config import OptimConfig, Recipe, RunConfig
from resim.training.pretrain import pretrain
from resim.views import loader, waiting
from resim.views.config import ViewsConfig

images, out, workers, resume, hang = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
open_photo, waiting.STOP_SECONDS = loader.Photo, 0.5


def hanging(path, **settings):
    while hang == "hang" and (images / "hang").exists() and int(Path(path).stem) % 2:
        if os.environ.get("RANK", "1") != "1":
            break  # of two processes, the second one's file system hangs
        time.sleep(0.05)
    return open_photo(path, **settings)


def watch(done, steps):
    if done == 2:
        (images / "hang").touch()  # from now on, half of the images cannot be read


loader.Photo = hanging
recipe = Recipe(
    name="tiny",
    model=ModelConfig(backbone="resnet18", levels=(), queue_size=16, group_size=4, dim=8),
    views=ViewsConfig(image_size=32),
    optim=OptimConfig(epochs=3, batch_size=4, seed=5),
)
run = RunConfig(
    out=out, resume=resume, device="cpu", precision="float32", workers=workers, slow_read_seconds=0.2,
    picture_every=0, log_every=1, kernels="off", keep_memory=False,
)
result = pretrain(recipe, run, images, watch=watch, show=False)
print("finished" if result.finished else "stopped", result.step, flush=True)
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    return folder


def start(images: Path, out: Path, workers: int, resume: str, hang: str = "hang") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", DRIVER, str(images), str(out), str(workers), resume, hang]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start_two(images: Path, out: Path, resume: str, hang: str = "hang") -> list[subprocess.Popen[str]]:
    """The same on two processes, with groups of two images."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    script = DRIVER.replace("group_size=4", "group_size=2")
    return [
        subprocess.Popen(
            [sys.executable, "-c", script, str(images), str(out), "1", resume, hang],
            env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def state_of(out: Path) -> dict[str, torch.Tensor]:
    state = torch.load(out / "checkpoints" / "last.pt", weights_only=True)
    return state["model"]


@pytest.fixture(scope="module")
def uninterrupted(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    output, errors = start(images, out, 0, "no", "never").communicate(timeout=120)
    (images / "hang").unlink(missing_ok=True)
    assert output == "finished 12\n", errors
    return out


@pytest.mark.parametrize(
    ("workers", "number"),
    [pytest.param(2, signal.SIGTERM, marks=pytest.mark.long), (2, signal.SIGINT), (0, signal.SIGTERM)],
)
def test_a_signal_saves_and_ends_a_run_whose_loader_hangs_and_it_resumes_bit_equal(
    images: Path, uninterrupted: Path, tmp_path: Path, workers: int, number: int
) -> None:
    out = tmp_path / "run"
    process = start(images, out, workers, "no")
    assert process.stderr is not None
    try:
        line = ""
        while "has been read for" not in line:  # the file that hangs is named while it is waited for
            line = process.stderr.readline()
            assert line, "the run ended without a word about the file that hangs"
        named = Path(line.partition(": ")[0])
        assert named.parent == images
        assert int(named.stem) % 2 == 1
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        (images / "hang").unlink(missing_ok=True)
    word, step = output.split()
    assert word == "stopped", errors
    assert process.returncode == 0
    assert 2 <= int(step) < 12
    assert len((out / "metrics.jsonl").read_text().splitlines()) == int(step)
    assert not (out / "bad_files.txt").exists()  # nothing was replaced

    output, errors = start(images, out, workers, "yes", "never").communicate(timeout=120)
    (images / "hang").unlink(missing_ok=True)
    assert output == "finished 12\n", errors
    whole, resumed = state_of(uninterrupted), state_of(out)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    losses = [
        [json.loads(text)["loss/total"] for text in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (uninterrupted, out)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 12


def test_a_signal_to_two_processes_of_which_one_hangs_saves_and_ends_both(images: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "run"
    for process in start_two(images, whole, "no", "never"):
        output, errors = process.communicate(timeout=120)
        assert output == "finished 12\n", errors
    (images / "hang").unlink(missing_ok=True)
    processes = start_two(images, out, "no")
    try:
        line = ""
        while "has been read for" not in line:
            assert processes[1].stderr is not None
            line = processes[1].stderr.readline()
            assert line, "the run ended without a word about the file that hangs"
        for process in processes:
            process.send_signal(signal.SIGTERM)
        ends = [process.communicate(timeout=30) for process in processes]  # torchrun kills what needs longer
    finally:
        for process in processes:
            process.kill()
        (images / "hang").unlink(missing_ok=True)
    assert [process.returncode for process in processes] == [0, 0], ends
    steps = {output for output, _ in ends}
    assert len(steps) == 1
    word, step = steps.pop().split()
    assert word == "stopped"
    assert 2 <= int(step) < 12
    for process in start_two(images, out, "yes", "never"):
        output, errors = process.communicate(timeout=120)
        assert output == "finished 12\n", errors
    (images / "hang").unlink(missing_ok=True)
    states = state_of(whole), state_of(out)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_images_that_become_pipes_during_a_run_are_counted_and_the_run_stops(images: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "images", tmp_path / "run"
    folder.mkdir()
    for path in sorted(images.glob("*.png")):
        (folder / path.name).write_bytes(path.read_bytes())
    script = DRIVER.replace('(images / "hang").touch()', "replace()").replace(
        "def watch(", "def replace():\n    import os\n    for path in sorted(images.glob('*[13579].png')):\n"
        "        path.unlink()\n        os.mkfifo(path)\n\n\ndef watch("
    ).replace("epochs=3", "epochs=40")  # fmt: skip
    command = [sys.executable, "-c", script, str(folder), str(out), "2", "no", "never"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1  # the UserError of the function `pretrain`
    assert "files read cannot be decoded, more than --max-bad-share 0.1" in done.stderr
    listed = (out / "bad_files.txt").read_text().splitlines()
    assert listed
    assert all(line.endswith("\ta named pipe, not a file") for line in listed)
    assert all(os.path.basename(line.partition("\t")[0])[1] in "13579" for line in listed)  # noqa: PTH119
