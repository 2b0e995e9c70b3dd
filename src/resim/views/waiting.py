"""Wait for what a loader reads, whatever its processes do: slow files are named, and a signal ends the wait.

A file system that hangs lets no read return, and no signal ends such a read. So a thread takes the batches from the
loader, and the training waits for the thread: it can give up, and leave a process that cannot be ended.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.process
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from resim.distributed.processes import Processes
from resim.errors import UserError
from resim.views.workers import Board, publish_reads

B = TypeVar("B")
SLOW_SECONDS = 60.0
"""A file that is read for longer is named."""
STOP_SECONDS = 10.0
"""After a signal, how long the batch that is being read is waited for."""
_END_SECONDS = 2.0  # for the files that are being read, for processes to end by SIGTERM, and by SIGKILL
_POLL_SECONDS = 0.2
_LEFT: list[object] = []  # loaders whose processes did not end: PyTorch would wait for them if they were deleted


class StalledError(RuntimeError):
    """A process has received a signal while its loader hangs: an evaluation or statistics are left unfinished."""


class _End:
    """Ends the items of a thread: the loader has no more, or has raised an error."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def read_in_time(
    loader: Iterable[B],
    board: Board,
    *,
    workers: int,
    signals: Sequence[int] = (),
    slow_seconds: float = SLOW_SECONDS,
    say: Callable[[str], object] = lambda text: print(text, file=sys.stderr, flush=True),
) -> Generator[B, None, None]:
    """Yield what a loader reads. The last item that is yielded may not be the loader's last: see `signals`.

    Args:
        loader: starts its processes when it is iterated.
        board: on which the processes publish what they read.
        workers: number of processes; 0: the thread reads.
        signals: the list of `catch_termination`: once it has an item, the next batch is waited for at most
            `STOP_SECONDS`, and then there are no more.
        slow_seconds: seconds after which a file that is still being read is named; again after twice the time, and so
            on.
        say: prints a line.
    """
    items = iter(loader)  # starts the processes, which a thread must not do
    taker = _Taker(items, None if workers else board)
    stalls = _Stalls(board, slow_seconds, say)
    gave_up = False
    try:
        while not gave_up:
            taker.ask()
            item: Any = None
            stop_at = float("inf")
            stalls.start_waiting()
            while (item := taker.answer()) is None:
                now = time.monotonic()
                stalls.report(now)
                if signals and stop_at == float("inf"):
                    stop_at = now + STOP_SECONDS
                if now > stop_at:
                    gave_up = True
                    break
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            if item is not None:
                yield item
    finally:
        if gave_up or _is_stuck(board):
            if workers:
                _LEFT.append(items)
                end_processes(board)
        else:
            taker.stop()  # what it keeps of the loader is released


def has_given_up(processes: Processes, batch: object) -> bool:
    """Whether a process has received a signal and no batch (None), so that no step can be done.

    All processes must call it before each step. Those on GPUs do not agree, which would wait for the device.

    Raises:
        UserError: this process has no batch, and others on GPUs may be within the step, so that nothing can be saved.
    """
    if processes.count == 1 or processes.device.type == "cpu":
        return processes.agree(batch is None)[0]
    if batch is None:
        raise UserError(
            "stopped by a signal while the loader waits for a file, which other processes do not know: nothing is "
            "saved since the last checkpoint, from which --resume continues"
        )
    return False


class _Taker:
    """A thread that takes one item after the other from an iterator, each on request."""

    def __init__(self, items: Iterator[Any], board: Board | None) -> None:
        self._questions: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        arguments = (items, board, self._questions, self._answers)
        self._thread = threading.Thread(target=_take, args=arguments, name="loader", daemon=True)
        self._thread.start()

    def ask(self) -> None:
        """Ask for the next item."""
        self._questions.put(True)

    def answer(self) -> Any:
        """The item asked for; None if it is not there after `_POLL_SECONDS`."""
        try:
            return self._answers.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            return None

    def stop(self) -> None:
        """End the thread, unless it waits in the iterator for longer than `_END_SECONDS`."""
        self._questions.put(False)
        self._thread.join(_END_SECONDS)


def _take(items: Iterator[Any], board: Board | None, questions: Any, answers: Any) -> None:
    if board is not None:
        publish_reads(board.row(0))
    while questions.get():
        try:
            answers.put(next(items))
        except StopIteration:
            answers.put(_End(None))
            return
        except BaseException as error:  # raised where the item is waited for
            answers.put(_End(error))
            return


class _Stalls:
    """Names the files that take long, while their batch is waited for."""

    def __init__(self, board: Board, slow_seconds: float, say: Callable[[str], object]) -> None:
        self._board, self._slow, self._say = board, slow_seconds, say
        self._next: dict[tuple[str, float], float] = {}  # by read, the seconds at which it is named again
        self._waiting_since = self._next_wait = 0.0

    def start_waiting(self) -> None:
        """The wait for a batch starts."""
        self._waiting_since, self._next_wait = time.monotonic(), self._slow

    def report(self, now: float) -> None:
        """Name the files that have been read for too long; if no file is read, say that the batch is late."""
        reads = self._board.reads()
        self._next = {read: self._next.get(read, self._slow) for read in reads}
        for read in reads:
            seconds = now - read.start
            if seconds >= self._next[read]:
                self._next[read] = 2 * seconds
                self._say(f"{read.path}: has been read for {seconds:.0f} s and is waited for: its file system may hang")
        waited = now - self._waiting_since
        if not reads and waited >= self._next_wait:
            self._next_wait = 2 * waited
            self._say(f"the loader has been waited for {waited:.0f} s: its processes are slow or stopped")


def _is_stuck(board: Board) -> bool:
    """Whether a process goes on reading the same file for `_END_SECONDS`."""
    reads = set(board.reads())
    end = time.monotonic() + _END_SECONDS
    while reads and time.monotonic() < end:
        time.sleep(0.01)
        reads &= set(board.reads())
    return bool(reads)


def end_processes(board: Board) -> None:
    """End the processes of a board by SIGTERM and then SIGKILL; those that do not end, which hang in the system, stay.

    It takes at most twice `_END_SECONDS`.
    """
    numbers = set(board.processes())
    workers = [process for process in multiprocessing.active_children() if process.pid in numbers]
    with _without_child_signals():
        for act in (multiprocessing.process.BaseProcess.terminate, multiprocessing.process.BaseProcess.kill):
            for process in workers:
                act(process)
            end = time.monotonic() + _END_SECONDS
            for process in workers:
                process.join(max(0.0, end - time.monotonic()))
            workers = [process for process in workers if process.is_alive()]
    for process in workers:  # at its end, Python would wait for them
        getattr(multiprocessing.process, "_children", set()).discard(process)


@contextlib.contextmanager
def _without_child_signals() -> Iterator[None]:
    """While inside, PyTorch raises no error for a worker that is killed."""
    try:
        previous = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    except ValueError:  # not in the main thread, which alone receives signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, previous)
