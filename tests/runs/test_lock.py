"""The lock of a run's folder is that of the training process alone, and a run that continues waits for it."""

from __future__ import annotations

import os
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
        self.after = lambda: None

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
    with lock_folder(tmp_path, ALONE):
        with pytest.raises(UserError, match=r"another run uses it, after 10 s of waiting:"):
            with lock_folder(tmp_path, ALONE, wait=10):
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


def test_a_forked_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    """A child that outlives its parent's lock, as loader processes outlive a killed training."""
    said, heard = os.pipe(), os.pipe()
    with lock_folder(tmp_path, ALONE):
        child = os.fork()
        if child == 0:  # pragma: no cover - another process
            os.write(said[1], b"x")
            os.close(heard[1])
            os.read(heard[0], 1)
            os._exit(0)
        os.read(said[0], 1)
        with pytest.raises(UserError, match="another run uses it"), lock_folder(tmp_path, ALONE):
            pass
    try:
        with lock_folder(tmp_path, ALONE):
            assert (tmp_path / ".lock").exists()
    finally:
        os.close(heard[1])
        os.waitpid(child, 0)
        for descriptor in (*said, heard[0]):
            os.close(descriptor)


def test_other_processes_of_a_run_take_no_lock(tmp_path: Path) -> None:
    second = Processes(rank=1, count=2, device=torch.device("cpu"), cores=1)
    with lock_folder(tmp_path / "run", second):
        assert not (tmp_path / "run").exists()
