"""Processes forked from a server that has imported everything, which saves seconds of imports.

A forked process behaves like one that `python -m resim` or torchrun starts: it has its own session, signals, output and
exit code, and the variables that torchrun sets.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from torch.multiprocessing.spawn import start_processes

from resim.cli.main import main

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["resim.cli.detect", "resim.detection.train", "resim.draw.curves", "resim.probes.online", "torch._dynamo"]
)


def on_processes(work: Callable[..., None], arguments: tuple[object, ...], count: int) -> None:
    """Call `work(rank, *arguments)` on `count` processes; raise the first exception of one of them."""
    start_processes(work, arguments, count, start_method="forkserver")


class Forked:
    """The command, or another function of its words, on one process, or on several as under torchrun."""

    def __init__(self, words: Sequence[str], processes: int = 1, *, act: Callable[[list[str]], int] = main) -> None:
        self._folder = tempfile.TemporaryDirectory()
        for name in ("out", "err"):  # a process can be killed before it opens them
            Path(self._folder.name, name).touch()
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(processes)}
        environment |= {"LOCAL_WORLD_SIZE": str(processes)}
        self._processes = [
            _CONTEXT.Process(
                target=_work,
                args=(act, list(words), environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, self._folder.name),
            )
            for rank in range(processes)
        ]
        for process in self._processes:
            process.start()

    @property
    def pid(self) -> int:
        """The id of the first process and of its process group."""
        return self.pids[0]

    @property
    def pids(self) -> list[int]:
        """The ids of all processes."""
        return [process.pid for process in self._processes if process.pid is not None]

    def wait_for_line(self, words: str, deadline: float = 300) -> str:
        """Wait for the first line of standard error that contains the words, and return it."""
        end = time.monotonic() + deadline
        while True:
            was_running, err = self.is_running(), Path(self._folder.name, "err").read_text()
            for line in err.splitlines(keepends=True):
                if words in line and line.endswith("\n"):
                    return line
            assert was_running, f"it ended without {words!r}: {err}"
            assert time.monotonic() < end, f"no {words!r} in {deadline} s: {err}"
            time.sleep(0.02)

    def is_running(self) -> bool:
        """Whether a process is still running."""
        return any(process.is_alive() for process in self._processes)

    def kill(self) -> Sequence[BaseProcess]:
        """Kill and return the processes that have not ended."""
        running = [process for process in self._processes if process.is_alive()]
        for process in running:
            process.kill()
            process.join()
        return running

    def codes(self) -> list[int | None]:
        """The exit codes of all processes; None: it is still running."""
        return [process.exitcode for process in self._processes]

    def end(self, deadline: float) -> tuple[int, str, str]:
        """Wait for all processes; return the first exit code that is not 0, and the output and errors of all."""
        end = time.monotonic() + deadline
        for process in self._processes:
            process.join(max(0.0, end - time.monotonic()))
        stuck = self.kill()
        codes = [code or 0 for code in self.codes()]
        out, err = (Path(self._folder.name, name).read_text() for name in ("out", "err"))
        self._folder.cleanup()
        assert not stuck, f"no end after {deadline} s: {out}{err}"
        return next((code for code in codes if code), 0), out, err


def _work(act: Callable[[list[str]], int], words: list[str], environment: dict[str, str], folder: str) -> None:
    """Run one process."""
    os.setsid()
    for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        os.dup2(os.open(Path(folder, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream.fileno())
    os.environ.update(environment)
    sys.exit(act(words))


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
