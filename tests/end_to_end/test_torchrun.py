"""Plain torchrun: two processes do what one does, and what one began another number can end."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

import resim
from end_to_end.runs import STEPS, frames_in_package, numbers, pretrain_run, state, torchrun
from equal import same

FIRST = 4  # steps on two processes: an epoch and one more


@pytest.fixture(scope="module")
def two(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on two processes that stopped after some steps."""
    out = tmp_path_factory.mktemp("two") / "run"
    ended = torchrun(images, out, "--stop-after", str(FIRST)).end()
    assert ended.code == 0, ended.err
    assert "on 2 x CPU" in ended.out
    assert ended.out.count(f"stopped after step {FIRST} of {STEPS}") == 1  # one of them prints
    return out


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(two: Path, uninterrupted: Path) -> None:
    ours, theirs = numbers(two), numbers(uninterrupted)
    assert len(ours) == FIRST
    for line, expected in zip(ours, theirs, strict=False):
        assert list(line) == list(expected)
        for name, value in expected.items():
            assert line[name] == pytest.approx(value, rel=1e-4), (line["step"], name)
    # steps of other images differ by far more
    totals = [line["loss/total"] for line in theirs]
    assert min(abs(a - b) for a in totals for b in totals if a != b) > 1e-3


@pytest.mark.slow
def test_two_processes_end_with_the_state_of_one(two: Path, uninterrupted: Path) -> None:
    ours, theirs = state(two), state(uninterrupted)
    assert ours["step"] == FIRST
    assert ours["recipe"] == theirs["recipe"]
    assert ours["data"] == theirs["data"]
    assert list(ours["model"]) == list(theirs["model"])
    assert ours["optimizer"]["param_groups"][0]["params"] == theirs["optimizer"]["param_groups"][0]["params"]


@pytest.mark.slow
def test_one_process_ends_what_two_began(two: Path, uninterrupted: Path, images: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(two, tmp_path / "run"))
    ended = pretrain_run(images, out, "--resume").end()
    assert ended.code == 0, ended.err
    assert f"resumed after step {FIRST}" in ended.out
    ours, theirs = state(out), state(uninterrupted)
    assert ours["step"] == STEPS
    for name, value in theirs["model"].items():
        assert (ours["model"][name].double() - value).norm() <= 1e-2 * value.double().norm(), name
    for line, expected in zip(numbers(out), numbers(uninterrupted), strict=True):
        assert line["loss/total"] == pytest.approx(expected["loss/total"], rel=1e-3)


@pytest.mark.slow
def test_two_processes_that_stop_and_resume_are_two_that_never_stopped(two: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    assert pretrain_run(images, out, "--stop-after", "2", processes=2).end().code == 0
    assert pretrain_run(images, out, "--stop-after", "2", "--resume", processes=2).end().code == 0
    ours, theirs = state(out), state(two)
    assert ours["step"] == theirs["step"] == 4
    assert same(ours["model"], theirs["model"])
    assert same(ours["optimizer"], theirs["optimizer"])


@pytest.mark.slow
def test_two_processes_with_probes_are_two_without(two: Path, images: Path, tmp_path: Path) -> None:
    probed = tmp_path / "probed"
    probes = ("--probe-every", "1", "--probe-images", "8")
    ended = pretrain_run(images, probed, "--stop-after", str(FIRST), *probes, processes=2).end()
    assert ended.code == 0, ended.err
    assert ended.out.count("probes before the first step: correspondence P4 ") == 1  # one of them prints
    assert ended.out.count("probes after epoch 1: ") == 1
    assert same(state(probed)["model"], state(two)["model"])
    assert same(state(probed)["optimizer"], state(two)["optimizer"])
    assert numbers(probed) == numbers(two)
    steps = [json.loads(line)["step"] for line in (probed / "probes.jsonl").read_text().splitlines()]
    assert steps == [0, 3]


@pytest.mark.slow
def test_probe_data_that_is_not_there_ends_all_processes(images: Path, tmp_path: Path) -> None:
    out, gone = tmp_path / "run", tmp_path / "gone"
    ended = torchrun(images, out, "--probe-every", "1", "--probe-data", str(gone)).end()
    assert ended.code != 0
    assert ended.err.count(f"resim pretrain: {gone}: there is no such folder or file") == 1


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_reported_once(images: Path, tmp_path: Path) -> None:
    ended = torchrun(images, tmp_path / "run", "--group-size", "8").end()
    assert ended.code != 0
    message = "resim pretrain: a batch of 8 over 2 processes is no whole number of groups of 8 in each: use a number of"
    assert ended.err.count(message) == 1
    assert frames_in_package(ended.err) == []  # there is torchrun's own stack trace alone
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_torchrun_asked_to_stop_leaves_a_checkpoint(uninterrupted: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = torchrun(images, out, "--workers", "1")
    run.wait_for_step(1)
    os.kill(run.pid, signal.SIGTERM)
    run.end()
    done = state(out)["step"]
    assert 2 <= done < STEPS
    assert [line["step"] for line in numbers(out)] == list(range(done))
    ended = pretrain_run(images, out, "--resume", "--stop-after", "1", processes=2).end()
    assert ended.code == 0, ended.err
    assert state(out)["step"] == done + 1
    assert numbers(out)[done]["loss/total"] == pytest.approx(numbers(uninterrupted)[done]["loss/total"], rel=1e-3)


def test_a_frame_is_the_package_s_by_where_the_package_lies_not_by_the_clone_s_name() -> None:
    package = Path(resim.__file__).parent
    ours, theirs = package / "cli.py", package.parent / "torch" / "run.py"
    trace = f'Traceback (most recent call last):\n  File "{ours}", line 1, in <module>\n  File "{theirs}", line 2\n'
    assert frames_in_package(trace) == [str(ours.resolve())]
    assert frames_in_package('  File "/home/me/resim/.venv/lib/python3.11/site-packages/torch/run.py", line 2') == []
