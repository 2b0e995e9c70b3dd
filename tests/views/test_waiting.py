from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from resim.distributed.processes import Processes
from resim.errors import UserError
from resim.views import loader, waiting
from resim.views.config import ViewsConfig
from resim.views.loader import BatchOrder, PairDataset, make_loader, read_batches
from resim.views.waiting import has_given_up, read_in_time
from resim.views.workers import Board, Read, publish_reads, reading

CONFIG = ViewsConfig(image_size=32)


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    paths = [str(tmp_path / f"{i}.png") for i in range(4)]
    for i, path in enumerate(paths):
        Image.fromarray(np.full((40, 50, 3), 10 * i, dtype=np.uint8)).save(path)
    return paths


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch, images: list[str]) -> Iterator[str]:
    """One image whose reading does not end until the test does; the limits are short."""
    released, path = threading.Event(), images[2]

    def open_photo(name: str, **settings: int) -> Any:
        while name == path and not released.is_set():
            released.wait(60)
        return PHOTO(name, **settings)

    monkeypatch.setattr(loader, "Photo", open_photo)
    monkeypatch.setattr(waiting, "STOP_SECONDS", 0.05)
    monkeypatch.setattr(waiting, "_END_SECONDS", 1.0)  # also for a process killed on a busy machine
    monkeypatch.setattr(waiting, "_POLL_SECONDS", 0.02)
    yield path
    released.set()


PHOTO = loader.Photo


def make(images: list[str], workers: int) -> loader.Loader[Any]:
    return make_loader(PairDataset(images, CONFIG, seed=7), BatchOrder(4, 2, seed=7, end_step=8), workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_ends_the_batches_where_the_loader_hangs(images: list[str], hanging: str, workers: int) -> None:
    before = set(multiprocessing.active_children())
    signals: list[int] = []
    loaded = make(images, workers)
    num_read = 0
    for batch in read_batches(loaded, signals):
        assert images.index(hanging) not in batch.indices
        num_read += 1
        signals.append(15)
    order = np.concatenate(list(BatchOrder(4, 2, seed=7, end_step=8)))[:, 1].tolist()
    assert num_read == order.index(images.index(hanging)) // 2
    assert set(multiprocessing.active_children()) == before  # its processes have ended


def test_a_signal_keeps_the_batches_that_come(images: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "STOP_SECONDS", 60.0)
    assert len(list(read_batches(make(images, 1), [15]))) == 8


def test_a_process_that_ignores_signals_is_killed(images: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "start_worker", _stop_this_process)
    monkeypatch.setattr(waiting, "STOP_SECONDS", 0.05)
    monkeypatch.setattr(waiting, "_END_SECONDS", 1.0)  # also for a process killed on a busy machine
    before = set(multiprocessing.active_children())
    assert list(read_batches(make(images, 1), [15])) == []
    assert set(multiprocessing.active_children()) == before


def _stop_this_process(worker: int, board: Board) -> None:
    """As a process that hangs in the system: it answers to no signal but SIGKILL."""
    publish_reads(board.row(worker))
    os.kill(os.getpid(), 19)


def test_a_process_that_no_signal_ends_is_left(images: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Undying(BaseProcess):
        pid = 12345  # type: ignore[assignment]

        def terminate(self) -> None: ...
        def kill(self) -> None: ...
        def join(self, timeout: float | None = None) -> None:
            assert timeout is not None  # it is not waited for without end

        def is_alive(self) -> bool:
            return True

    board, process = Board(1), Undying.__new__(Undying)
    monkeypatch.setattr(waiting.multiprocessing, "active_children", lambda: [process])
    monkeypatch.setattr(waiting.multiprocessing.process, "_children", {process})
    monkeypatch.setattr(waiting.multiprocessing.process, "BaseProcess", Undying)
    monkeypatch.setattr(waiting, "_END_SECONDS", 0.0)
    board.row(0)[:8] = (12345).to_bytes(8, "little")
    waiting.end_processes(board)
    assert waiting.multiprocessing.process._children == set()  # type: ignore[attr-defined]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_is_read_for_long_is_named_with_the_seconds(images: list[str], hanging: str, workers: int) -> None:
    said: list[str] = []
    signals: list[int] = []

    def say(text: str) -> None:
        if "the loader has been waited for" not in text:  # a process that starts slowly
            said.append(text)
            signals.append(15)

    loaded = make(images, workers)
    batches = read_in_time(loaded, loaded.board, workers=workers, signals=signals, slow_seconds=0.1, say=say)
    assert len(list(batches)) < 8
    assert said[0] == f"{hanging}: has been read for 0 s and is waited for: its file system may hang"


def test_a_late_batch_of_which_no_file_is_read_is_said() -> None:
    said: list[str] = []
    stalls = waiting._Stalls(Board(1), 60.0, said.append)
    stalls.start_waiting()
    start = time.monotonic()
    for seconds in (59, 61, 70, 119, 123):
        stalls.report(start + seconds)
    assert said == [
        f"the loader has been waited for {seconds} s: its processes are slow or stopped" for seconds in (61, 123)
    ]


def test_a_slow_file_is_named_again_after_twice_the_time() -> None:
    said: list[str] = []
    board = Board(2)
    publish_reads(board.row(1))
    stalls = waiting._Stalls(board, 60.0, said.append)
    stalls.start_waiting()
    with reading("/a/\udcff.jpg"):
        (read,) = board.reads()
        assert read.path == "/a/\udcff.jpg"
        for seconds in (59, 61, 100, 121, 123):
            stalls.report(read.start + seconds)
    stalls.report(read.start + 500)
    named = [text.partition(": ")[2].partition(" and")[0] for text in said]
    assert named[:2] == ["has been read for 61 s", "has been read for 123 s"]
    assert said[2:] == ["the loader has been waited for 500 s: its processes are slow or stopped"]


def test_the_board_has_what_each_process_reads() -> None:
    board = Board(2)
    assert (board.reads(), board.processes()) == ([], [])
    publish_reads(board.row(1))
    with reading("x" * 5000):
        assert board.reads() == [Read("x" * 4096, board.reads()[0].start)]
    assert (board.reads(), board.processes()) == ([], [os.getpid()])


def test_processes_agree_that_one_has_no_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Processes(rank=0, count=1, device=torch.device("cpu"), cores=1)
    assert has_given_up(alone, None)
    assert not has_given_up(alone, "batch")
    together = Processes(rank=0, count=2, device=torch.device("cpu"), cores=1)
    monkeypatch.setattr(Processes, "agree", lambda self, flag: [True])
    assert has_given_up(together, "batch")  # another process has none
    gpus = Processes(rank=0, count=2, device=torch.device("cuda"), cores=1)
    assert not has_given_up(gpus, "batch")
    with pytest.raises(UserError, match="nothing is saved since the last checkpoint"):
        has_given_up(gpus, None)
