"""The lock of a run's folder is that of the training process alone, and a run that continues waits for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from resim.distributed.processes import Processes
from resim.errors import UserError
from resim.runs import lock
from resim.runs.lock import lock_folder

ALONE = Processes(rank=0, count=1, device=torch.device("cpu"), cores=1)


class Clock:
    """A clock that moves only while it is slept on; `after` is called once at a time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.at = float("inf")
        self.after: Callable[[], object] = lambda: None

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.now >= self.at:
            self.at = float("inf")
            self.after()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lock, "time", clock)
    return clock


def test_a_new_run_is_refused_at_once(tmp_path: Path, clock: Clock) -> None:
    with lock_folder(tmp_path, ALONE):
        with pytest.raises(UserError) as caught, lock_folder(tmp_path, ALONE):
            pass
        assert str(caught.value) == f"--out {tmp_path}: another run uses it: wait for its end, or name another folder"
    assert clock.now == 0
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_continues_waits_first(tmp_path: Path, clock: Clock) -> None:
    second = lock_folder(tmp_path, ALONE, wait=10)
    with lock_folder(tmp_path, ALONE), pytest.raises(UserError, match="uses it, after 10 s of waiting: "), second:
        pass
    assert clock.now == pytest.approx(10, abs=0.11)


def test_it_starts_when_the_other_one_ends(tmp_path: Path, clock: Clock) -> None:
    """The file that the first run removes at its end is not the one that the second has locked then."""
    first = lock_folder(tmp_path, ALONE)
    first.__enter__()
    clock.at, clock.after = 3.0, lambda: first.__exit__(None, None, None)
    with lock_folder(tmp_path, ALONE, wait=10):
        assert clock.now == pytest.approx(3, abs=0.11)
        with pytest.raises(UserError, match="another run uses it"), lock_folder(tmp_path, ALONE):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_removed_between_opening_and_locking_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    flock = lock.fcntl.flock

    def remove_first(file: object, operation: int) -> None:
        calls.append(operation)
        if len(calls) == 1:
            (tmp_path / ".lock").unlink()
        flock(file, operation)  # type: ignore[arg-type]

    monkeypatch.setattr(lock.fcntl, "flock", remove_first)
    with lock_folder(tmp_path, ALONE):
        assert len(calls) == 2
        with pytest.raises(UserError, match="another run uses it"), lock_folder(tmp_path, ALONE):
            pass


def _run_with_loader(out: Path, ready: int) -> None:
    """A training process that has the lock and has forked a loader process; both stay for a minute at most."""
    with lock_folder(out, ALONE):
        os.fork()
        signal.alarm(60)
        os.write(ready, b"x")
        while True:
            signal.pause()


def test_the_lock_of_a_killed_run_ends_with_it(tmp_path: Path) -> None:
    """Its loader process lives on: it has inherited the open file, and closed it."""
    read, write = os.pipe()
    run = os.fork()
    if run == 0:  # another process
        os.setsid()
        _run_with_loader(tmp_path, write)
    try:
        assert os.read(read, 1) + os.read(read, 1) == b"xx"  # both are there
        with pytest.raises(UserError, match="another run uses it"), lock_folder(tmp_path, ALONE):
            pass
        os.kill(run, signal.SIGKILL)
        os.waitpid(run, 0)
        with lock_folder(tmp_path, ALONE):
            assert (tmp_path / ".lock").exists()
        os.killpg(run, 0)  # its group has a process still: the loader's
    finally:
        os.killpg(run, signal.SIGKILL)
        os.close(read)
        os.close(write)


def test_other_processes_of_a_run_take_no_lock(tmp_path: Path) -> None:
    second = Processes(rank=1, count=2, device=torch.device("cpu"), cores=1)
    with lock_folder(tmp_path / "run", second):
        assert not (tmp_path / "run").exists()
