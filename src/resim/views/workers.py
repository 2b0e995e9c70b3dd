"""Worker processes of the loader: their memory and signals, what each reads, and the report of a killed one."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import multiprocessing.util
import os
import signal
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch

from resim.acceleration import allocator
from resim.counts import counted
from resim.errors import UserError

_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
_LONGEST_PATH = 4096
_LONGEST_FOLDER = 107 - len("/listener-12345678")  # bytes: the path of a socket has 107 at most
_HEAD = struct.Struct("=qdi")  # process, start of the read (0: none) and length of the path, which follows


class Read(NamedTuple):
    """A file that is being read."""

    path: str
    start: float
    """As of `time.monotonic`, which all processes of a machine share."""


class Board:
    """Memory shared by the workers of a loader, in which each publishes its process and the file that it reads.

    Args:
        workers: number of workers, or 1 where the training process itself reads.
    """

    def __init__(self, workers: int) -> None:
        self._rows = torch.zeros(workers, _HEAD.size + _LONGEST_PATH, dtype=torch.uint8).share_memory_()

    def row(self, worker: int) -> memoryview:
        """The memory of a worker."""
        return memoryview(cast(Any, self._rows[worker].numpy()))

    def processes(self) -> list[int]:
        """The numbers of the processes that have started."""
        heads = (_HEAD.unpack_from(self.row(worker)) for worker in range(len(self._rows)))
        return [process for process, _, _ in heads if process]

    def reads(self) -> list[Read]:
        """The files that are being read now."""
        reads = []
        for worker in range(len(self._rows)):
            row = self.row(worker)
            _, start, length = _HEAD.unpack_from(row)
            path = bytes(row[_HEAD.size : _HEAD.size + max(0, length)])
            if start and _HEAD.unpack_from(row)[1] == start:  # the path belongs to it
                reads.append(Read(os.fsdecode(path), start))
        return reads


class _Place(threading.local):
    """The row of the board in which this thread publishes what it reads; None: nothing watches."""

    row: memoryview | None = None


_place = _Place()


def publish_reads(row: memoryview) -> None:
    """Publish in this row of a `Board` which file this thread reads, from now on."""
    _place.row = row
    _HEAD.pack_into(row, 0, os.getpid(), 0.0, 0)


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """While inside, this file is published as the one that is being read."""
    row = _place.row
    if row is None:
        yield
        return
    name, process = os.fsencode(path)[:_LONGEST_PATH], os.getpid()
    row[_HEAD.size : _HEAD.size + len(name)] = name
    _HEAD.pack_into(row, 0, process, time.monotonic(), len(name))
    try:
        yield
    finally:
        _HEAD.pack_into(row, 0, process, 0.0, 0)


def check_temporary_folder() -> None:
    """Check that worker processes can open their sockets, over which PyTorch passes the memory of a batch.

    Where they cannot, PyTorch drops the batch, and whoever waits for it waits for ever.

    Raises:
        UserError: the path of the folder for temporary files is too long for a socket in it.
    """
    if sys.platform != "linux":
        return
    folder = os.fsencode(multiprocessing.util.get_temp_dir())  # below TMPDIR; workers have the same
    excess = len(folder) - _LONGEST_FOLDER
    if excess > 0:
        raise UserError(
            f"TMPDIR {tempfile.gettempdir()}: is {counted(excess, 'byte')} too long: loader processes cannot open "
            "their sockets in it: set TMPDIR to a folder with a shorter path, or use --workers 0"
        )


def start_worker(worker: int, board: Board | None = None) -> None:
    """Set a worker's memory, signals and row of the board, as its first action; it ends when its parent does."""
    _end_with_parent()
    memory = allocator()
    if memory is not None:
        memory.keep_memory_if_parted()
    _ignore_signals_of_others()
    if board is not None:
        publish_reads(board.row(worker))


def _end_with_parent() -> None:
    """Let the system kill this worker when its parent ends, however it ends: PyTorch's workers notice it after 5 s.

    Until then they would keep the memory that the next run needs. Linux alone has such a signal.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:  # it ended before
        os._exit(1)


def _ignore_signals_of_others() -> None:
    """Let only the parent end this worker: a job's signal reaches all processes, and the parent finishes its step."""
    for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # reports the sender of a signal; not on all systems
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_on_parents_signal, daemon=True).start()


def _exit_on_parents_signal() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


@contextlib.contextmanager
def report_killed_workers(*, can_resume: bool = False) -> Iterator[None]:
    """Convert PyTorch's errors for a killed worker process, which a signal raises at any moment, into a UserError.

    Args:
        can_resume: whether --resume continues what is inside.

    Raises:
        UserError: a worker process of the loader was killed.
    """
    try:
        yield
        return
    except RuntimeError as error:
        if not any("DataLoader worker" in str(e) for e in (error, error.__context__)):
            raise
    except (ConnectionError, EOFError):  # it was killed during a transfer
        with contextlib.suppress(RuntimeError):
            time.sleep(2)  # wait for PyTorch's signal, which would interrupt the handling of the error
    raise UserError(
        "a worker process of the loader was killed, perhaps because memory is full: use fewer --workers"
        + ("; --resume continues from the last checkpoint" if can_resume else "")
    )
