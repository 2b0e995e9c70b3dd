"""Signals that stop a training: each is caught, a second Ctrl+C is not, and all processes stop after the same step."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from forked import on_processes
from resim.distributed.processes import Processes
from resim.runs.clock import Clock
from resim.runs.config import RunConfig
from resim.signals import STOP_SIGNALS, Terminated, catch_termination, end_on_signals, interrupt_at_once

ALONE = Processes(rank=0, count=1, device=torch.device("cpu"), cores=1)


def test_the_signals_of_terminals_clusters_and_slurm_are_caught() -> None:
    assert {number.name for number in STOP_SIGNALS} == {"SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"}


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_a_signal_is_recorded_and_ends_the_training_after_its_step(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with catch_termination() as received:
        clock = Clock(RunConfig(log_every=5), ALONE, received, step=0, end=10, boundary=10)
        assert not clock.tick().save
        signal.raise_signal(number)
        assert received == [number]
        assert clock.tick() == (True, True)  # the metrics are read and a checkpoint is saved
        assert (clock.step, clock.is_over, clock.is_stopped) == (2, True, True)
    assert signal.getsignal(number) is before


def test_a_signal_in_the_last_step_stops_nothing() -> None:
    clock = Clock(RunConfig(), ALONE, [signal.SIGTERM], step=9, end=10, boundary=10)
    clock.tick()
    assert (clock.is_over, clock.is_stopped) == (True, False)
    clock = Clock(RunConfig(stop_after=1), ALONE, [], step=3, end=10, boundary=10)
    clock.tick()
    assert (clock.is_over, clock.is_stopped) == (True, False)


def test_a_second_ctrl_c_ends_the_process_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with catch_termination() as received:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # the first one
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert received == [signal.SIGTERM, signal.SIGINT]


def test_the_first_ctrl_c_ends_work_of_which_nothing_is_saved() -> None:
    with catch_termination() as received:
        with pytest.raises(KeyboardInterrupt), interrupt_at_once():
            signal.raise_signal(signal.SIGINT)
        with interrupt_at_once():
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert received == [signal.SIGTERM, signal.SIGINT]


def test_under_torchrun_which_repeats_ctrl_c_a_third_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    with catch_termination() as received:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert received == [signal.SIGINT, signal.SIGINT]


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with catch_termination() as received:
            signal.raise_signal(signal.SIGHUP)
            assert received == []
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def work(rank: int, folder: str) -> None:
    """Every signal in turn reaches the second process alone, after two steps."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    processes = Processes(rank=rank, count=2, device=torch.device("cpu"), cores=1)
    ends = []
    for number in STOP_SIGNALS:
        with catch_termination() as received:
            clock = Clock(RunConfig(), processes, received, step=0, end=9, boundary=9)
            while not clock.is_over:
                if rank == 1 and clock.step == 2:
                    signal.raise_signal(number)
                clock.tick()
            ends.append(f"{clock.step} {clock.is_stopped}")
    Path(folder, str(rank)).write_text("\n".join(ends))
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path: Path) -> None:
    on_processes(work, (str(tmp_path),), 2)
    for rank in range(2):
        assert (tmp_path / str(rank)).read_text().splitlines() == ["3 True"] * 5


def test_inside_another_context_the_list_is_the_outer_ones() -> None:
    with catch_termination() as received:
        with catch_termination() as inner:
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGUSR1)
        assert inner is received
    assert received == [signal.SIGTERM, signal.SIGUSR1]
    with catch_termination() as received:
        assert received == []


@pytest.mark.parametrize("number", [n for n in STOP_SIGNALS if n != signal.SIGINT], ids=lambda number: number.name)
def test_outside_a_training_a_signal_ends_what_runs(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Terminated) as ended, end_on_signals():
        signal.raise_signal(number)
    assert ended.value.signal_name == number.name
    assert signal.getsignal(number) is before


def test_outside_a_training_a_second_signal_is_the_systems() -> None:
    with end_on_signals():
        with pytest.raises(Terminated):
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
