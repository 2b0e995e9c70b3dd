"""Real fine-tunings in separate processes: stopped by a signal, resumed, and on two processes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from end_to_end.runs import TORCHRUN, Command, Ended, Run, frames_in_package, numbers, state
from equal import same
from forked import Forked
from resim.exit_codes import STOPPED
from resim.scenes.scenes import write_scenes

pytestmark = pytest.mark.slow

STEPS = 6
RECIPE = (
    "--recipe quick --backbone resnet18 --fpn-width 16 --rpn-regions 16 --box-regions 16 --proposals-train 30 "
    "--proposals-test 20 --min-sizes 64 --max-size 128 --test-size 64 --batch-size 2 --drops 4 --warmup-steps 2 "
    f"--precise-bn 2 --steps {STEPS} --eval-every 3 --device cpu --precision float32 --workers 0 --log-every 1"
).split()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO file of small scenes."""
    return write_scenes(tmp_path_factory.mktemp("scenes") / "made", 8, seed=2, width=96, height=72)


def detect_words(data: Path, out: Path, *options: str) -> list[str]:
    """`resim detect train`, evaluated on its own images."""
    return ["detect", "train", str(data), "--val", str(data), "--out", str(out), *RECIPE, *options]


def detect_run(data: Path, out: Path, *options: str) -> Run:
    """It, in a forked process."""
    return Run(Forked(detect_words(data, out, *options)), out)


def torchrun(data: Path, out: Path, *options: str) -> Ended:
    """It, on two processes that torchrun starts, to its end."""
    return Run(Command(detect_words(data, out, *options), TORCHRUN), out).end()


def scored(out: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (out / "scores.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    ended = detect_run(data, out).end()
    assert (ended.code, ended.err) == (0, "")
    assert scored(out) == [3, 6]
    return out


def test_asked_to_stop_and_resumed(whole: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = detect_run(data, out, "--workers", "1")
    run.wait_for_step(0)
    os.killpg(run.pid, signal.SIGTERM)  # to the loader's processes too, as a cluster does
    ended = run.end()
    assert (ended.code, ended.err) == (STOPPED, "")
    done = state(out)["step"]
    assert 1 <= done < STEPS
    assert f"stopped after step {done} of {STEPS}, saved; go on with --out {out} --resume" in ended.out
    assert detect_run(data, out, "--resume").end().code == 0
    assert same(state(out), state(whole))
    assert numbers(out) == numbers(whole)
    assert scored(out) == scored(whole)
    assert (out / "scores.jsonl").read_text() == (whole / "scores.jsonl").read_text()


def test_killed_and_resumed(whole: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = detect_run(data, out, "--checkpoint-minutes", "0")
    run.wait_for_step(4)
    os.kill(run.pid, signal.SIGKILL)
    assert run.end().code == -signal.SIGKILL
    assert 3 <= state(out)["step"] < STEPS
    assert detect_run(data, out, "--resume").end().code == 0
    assert same(state(out), state(whole))
    assert numbers(out) == numbers(whole)
    assert (out / "scores.jsonl").read_text() == (whole / "scores.jsonl").read_text()
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["last.pt", "previous.pt"]


def test_two_processes_write_one_set_of_files(whole: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ended = torchrun(data, out, "--stop-after", "3")
    assert ended.code == 0, ended.err
    assert "1 on each of 2 x CPU" in ended.out
    assert ended.out.count(f"stopped after step 3 of {STEPS}") == ended.out.count("evaluation after step 3") == 1
    ours = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    theirs = {str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()}
    assert {name for name in ours ^ theirs if not name.startswith("tensorboard/")} == set()
    assert sum(name.startswith("tensorboard/") for name in ours) == 1
    assert [line["step"] for line in numbers(out)] == [0, 1, 2]
    first, other = numbers(out)[0], numbers(whole)[0]
    assert first.keys() == other.keys()
    # the same images with the same draws; each half's losses are its own
    assert first["loss/rpn_objectness"] == pytest.approx(other["loss/rpn_objectness"], rel=0.05)
    config = json.loads((out / "config.json").read_text())
    assert config["processes"] == 2
    # what two began one can end
    assert detect_run(data, out, "--resume").end().code == 0
    assert state(out)["step"] == STEPS
    assert scored(out) == [3, 6]


def test_a_batch_that_cannot_be_shared_is_reported_once(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ended = Run(Forked(detect_words(data, out, "--batch-size", "3"), processes=2), out).end()
    assert ended.code != 0
    message = "resim detect: a batch of 3 cannot be shared among 2 processes: set --batch-size to a multiple"
    assert ended.err.count(message) == 1
    assert frames_in_package(ended.err) == []
    assert not out.exists()
