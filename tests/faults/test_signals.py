"""Real runs that every signal stops: saved, with the exit code for a requeue, and continued bit for bit."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from end_to_end.runs import STEPS, numbers, pretrain_run, state
from equal import same
from resim.exit_codes import STOPPED
from resim.signals import STOP_SIGNALS

pytestmark = pytest.mark.slow
COMMON = (signal.SIGTERM, signal.SIGINT)


@pytest.mark.parametrize(
    "number",
    [pytest.param(number, marks=() if number in COMMON else pytest.mark.long) for number in STOP_SIGNALS],
    ids=lambda number: number.name,
)
def test_a_signal_to_the_whole_group_saves_and_stops(
    uninterrupted: Path, images: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "run"
    run = pretrain_run(images, out, "--workers", "1")
    run.wait_for_step(1)
    os.killpg(run.pid, number)  # to the loader's process too, as terminals and clusters do
    ended = run.end()
    assert (ended.code, ended.err) == (STOPPED, "")
    done = state(out)["step"]
    assert 2 <= done < STEPS
    assert f"stopped after step {done} of {STEPS}, saved" in ended.out
    assert pretrain_run(images, out, "--resume", "auto").end().code == 0
    assert same(state(out), state(uninterrupted))
    assert numbers(out) == numbers(uninterrupted)
