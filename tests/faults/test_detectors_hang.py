"""A file system that hangs in a fine-tuning, while it trains or evaluates, and images that become pipes."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from forked import Forked
from resim.cli.main import main
from resim.detection import samples
from resim.exit_codes import STOPPED
from resim.scenes.scenes import write_scenes
from resim.views import loader
from thin_resnets import ThinResNet, resnets_of

pytestmark = pytest.mark.slow

STEPS, IMAGES = 6, 8
END_SECONDS = 30  # torchrun kills what needs longer; 10 s are waited for the batch, 6 s for processes to end
RECIPE = (
    "--recipe quick --backbone resnet18 --fpn-width 16 --rpn-regions 16 --box-regions 16 --proposals-train 30 "
    "--proposals-test 20 --min-sizes 64 --max-size 128 --test-size 64 --batch-size 2 --drops 4 --warmup-steps 2 "
    f"--steps {STEPS} --eval-every 3 --device cpu --precision float32 --log-every 1"
).split()


def run_command(words: list[str]) -> int:
    """The command behind two words: the part of a path that hangs (or "never"), and a file that must exist for it."""
    hang, mark, *command = words
    open_photo = samples.Photo

    def open_or_hang(path: Any, **settings: Any) -> Any:
        while hang != "never" and Path(mark).exists() and hang in str(path) and int(Path(path).stem) % 2:
            if os.environ["RANK"] != str(int(os.environ["WORLD_SIZE"]) - 1):
                break  # of two processes, the second one's file system hangs
            time.sleep(0.05)
        return open_photo(path, **settings)

    samples.Photo = open_or_hang  # type: ignore[misc, assignment]
    loader.Loader.read.__defaults__ = ((), 0.2)  # seconds after which a file is named
    with resnets_of(ThinResNet):
        return main(command)


def tune(data: Path, out: Path, hang: str, mark: Path, processes: int, *options: str) -> Forked:
    """`resim detect train`, on one process or two."""
    val = data.parent.parent / "val" / "instances.json"
    words = ["detect", "train", str(data), "--val", str(val), "--out", str(out), *RECIPE, *options]
    return Forked([hang, str(mark), *words], processes, act=run_command)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO file to train on; next to its folder is one to evaluate on."""
    folder = tmp_path_factory.mktemp("data")
    write_scenes(folder / "val", IMAGES, seed=3, width=96, height=72)
    return write_scenes(folder / "train", IMAGES, seed=2, width=96, height=72)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """By the number of processes, the folder of a run that nothing stopped."""
    runs = {}
    for processes in (1, 2):
        runs[processes] = tmp_path_factory.mktemp("whole") / "run"
        code, _, err = tune(data, runs[processes], "never", data, processes, "--workers", "0").end(300)
        assert code == 0, err
    return runs


def is_end_of(out: Path, whole: Path) -> bool:
    states = [torch.load(run / "checkpoints" / "last.pt", weights_only=True) for run in (out, whole)]
    scores = [(run / "scores.jsonl").read_text() for run in (out, whole)]
    weights = [state["model"] for state in states]
    return scores[0] == scores[1] and all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("part", "processes", "workers", "number"),
    [
        ("train", 2, 1, signal.SIGTERM),
        ("val", 1, 1, signal.SIGINT),
        pytest.param("train", 1, 2, signal.SIGTERM, marks=pytest.mark.long),
        pytest.param("train", 1, 0, signal.SIGINT, marks=pytest.mark.long),
        pytest.param("val", 2, 0, signal.SIGTERM, marks=pytest.mark.long),
    ],
)
def test_a_signal_saves_and_ends_a_fine_tuning_whose_loader_hangs(
    data: Path, whole: dict[int, Path], tmp_path: Path, part: str, processes: int, workers: int, number: int
) -> None:
    out, mark = tmp_path / "run", tmp_path / "hangs"
    options = ("--workers", str(workers))
    if part == "train":  # from the third step on
        tune(data, out, "never", mark, processes, *options, "--stop-after", "2").end(300)
    mark.touch()
    tuning = tune(data, out, f"/{part}/", mark, processes, *options, "--resume", "auto")
    try:
        line = tuning.wait_for_line("has been read for")
        assert Path(line.partition(": ")[0]).parent.parent.name == part
        for pid in tuning.pids:
            os.kill(pid, number)
        _, output, err = tuning.end(END_SECONDS)
    finally:
        tuning.kill()
    assert tuning.codes() == [STOPPED] * processes, err
    step = torch.load(out / "checkpoints" / "last.pt", weights_only=True)["step"]
    assert f"stopped after step {step} of {STEPS}, saved; go on with --out {out} --resume" in output
    assert 2 <= step <= 3
    assert (out / "scores.jsonl").exists() is False  # the evaluation after step 3 is still to come
    code, _, err = tune(data, out, "never", mark, processes, *options, "--resume").end(300)
    assert code == 0, err
    assert is_end_of(out, whole[processes])


def test_a_signal_ends_an_evaluation_whose_loader_hangs(data: Path, whole: dict[int, Path], tmp_path: Path) -> None:
    mark = tmp_path / "hangs"
    mark.touch()
    val = data.parent.parent / "val" / "instances.json"
    words = ["detect", "eval", str(whole[1]), str(val), "--out", str(tmp_path / "out"), "--workers", "1"]
    evaluation = Forked(["/val/", str(mark), *words], act=run_command)
    try:
        evaluation.wait_for_line("has been read for")
        os.kill(evaluation.pid, signal.SIGTERM)
        code, _, err = evaluation.end(END_SECONDS)
    finally:
        evaluation.kill()
    assert code == STOPPED
    line = "resim detect: stopped by SIGTERM: no scores are written: the same command starts from the beginning"
    assert err.splitlines()[-1] == line
    assert not (tmp_path / "out" / "scores.jsonl").exists()


def run_with_pipes(words: list[str]) -> int:
    """The command; images whose name ends in 3 become pipes when they are first read."""
    open_photo = samples.Photo

    def open_pipe(path: Any, **settings: Any) -> Any:
        if str(path).endswith("3.jpg"):
            Path(path).unlink()
            os.mkfifo(path)
        return open_photo(path, **settings)

    samples.Photo = open_pipe  # type: ignore[misc, assignment]
    with resnets_of(ThinResNet):
        return main(words)


def test_images_that_become_pipes_are_bad_images(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "train"
    write_scenes(folder, IMAGES, seed=2, width=96, height=72)
    val = data.parent.parent / "val"
    (tmp_path / "data" / "val").symlink_to(val)
    labels, out = folder / "instances.json", tmp_path / "run"
    tuning = tune(labels, out, "never", tmp_path / "mark", 1, "--workers", "1", "--stop-after", "1")
    assert tuning.end(300)[0] == 0
    words = ["detect", "train", str(labels), "--val", str(val / "instances.json")]
    words += ["--out", str(out), "--resume", "--workers", "1", "--max-bad-share", "1"]
    code, _, err = Forked(words, act=run_with_pipes).end(300)
    assert code == 0, err
    assert "000003.jpg\ta named pipe, not a file\n" in (out / "bad_files.txt").read_text()
    assert json.loads((out / "scores.jsonl").read_text().splitlines()[-1])["step"] == STEPS
