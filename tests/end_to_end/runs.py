"""Real runs of the command in separate processes, small enough for tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import resim
from forked import Forked
from resim.runs.checkpoints import load_checkpoint
from resim.runs.log import read_metrics

IMAGES, BATCH, EPOCHS = 24, 8, 3
STEPS = IMAGES // BATCH * EPOCHS
DEADLINE = 300.0  # seconds, for what takes a few: a test that waits longer has failed
RECIPE = (
    "--recipe quick --levels P4:window=32,step=16 P3:window=16,step=16,negatives=group --fpn-width 16 --dim 16 "
    f"--queue-size 16 --group-size 4 --batch-size {BATCH} --image-size 64 --epochs {EPOCHS}"
).split()
SETTINGS = ["--device", "cpu", "--precision", "float32", "--picture-every", "0", "--log-every", "1", "--workers", "0"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@dataclass(frozen=True)
class Ended:
    """The exit code and the output of a process."""

    code: int
    out: str
    err: str


class Started(Protocol):
    """Processes of the command that were started: `Forked`, or a `Command`."""

    @property
    def pid(self) -> int:
        """The first process's number, and that of its process group."""
        ...

    def is_running(self) -> bool:
        """Whether any of them has not ended."""
        ...

    def end(self, deadline: float) -> tuple[int, str, str]:
        """Wait for the end: the exit code, and what was printed to standard output and error."""
        ...


class Command:
    """`python -m resim`, started directly or by a launcher such as torchrun, in a separate process group."""

    def __init__(
        self, words: Sequence[str], launcher: Sequence[str] = (), inside: Sequence[str] = (), **variables: str
    ) -> None:
        self._process = subprocess.Popen(
            [*inside, sys.executable, *launcher, "-m", "resim", *words],
            env=os.environ | {"OMP_NUM_THREADS": "1"} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self._process.pid

    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def end(self, deadline: float) -> tuple[int, str, str]:
        """Wait for its end: the exit code, and what was printed to standard output and error."""
        out, err = self._process.communicate(timeout=deadline)
        return self._process.returncode, out, err


class Run:
    """A run that was started, and its folder."""

    def __init__(self, started: Started, out: Path) -> None:
        self.started, self.out = started, out

    @property
    def pid(self) -> int:
        """The first process's number, and that of its process group."""
        return self.started.pid

    def wait_for_step(self, step: int) -> None:
        """Wait until the metrics have a line of this step."""
        deadline = time.monotonic() + DEADLINE
        while step not in self.steps():
            if not self.started.is_running():
                raise AssertionError(f"it ended before step {step}: {self.end()}")
            assert time.monotonic() < deadline, f"no step {step} in {DEADLINE} s"
            time.sleep(0.01)

    def steps(self) -> list[int]:
        """The steps of which there is a line."""
        path = self.out / "metrics.jsonl"
        return [int(line["step"]) for line in read_metrics(path)] if path.exists() else []

    def end(self) -> Ended:
        """Wait for its end."""
        return Ended(*self.started.end(DEADLINE))


def pretrain_words(images: Path, out: Path, *options: str) -> list[str]:
    """The command of a small pre-training."""
    return ["pretrain", str(images), "--out", str(out), *RECIPE, *SETTINGS, *options]


def pretrain_run(images: Path, out: Path, *options: str, processes: int = 1) -> Run:
    """A small pre-training in forked processes."""
    return Run(Forked(pretrain_words(images, out, *options), processes), out)


def torchrun(images: Path, out: Path, *options: str) -> Run:
    """A small pre-training on two processes that torchrun starts."""
    return Run(Command(pretrain_words(images, out, *options), TORCHRUN), out)


def frames_in_package(err: str) -> list[str]:
    """The frames of the stack traces in `err` that lie in the package; the clone's folder may have any name."""
    package = Path(resim.__file__).resolve().parent
    files = [Path(name).resolve() for name in re.findall(r'File "([^"]+)"', err)]
    return [str(file) for file in files if file.is_relative_to(package)]


def numbers(out: Path) -> list[dict[str, float]]:
    """All numbers of a run, without its speed."""
    timing = ("images_per_second", "data_wait")
    lines = read_metrics(out / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in timing} for line in lines]


def state(out: Path) -> dict[str, Any]:
    """The last checkpoint."""
    return load_checkpoint(out / "checkpoints" / "last.pt")
