"""Numbers of a run: one line for each step in metrics.jsonl, TensorBoard, and the progress on the terminal."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard.writer import SummaryWriter

from resim.distributed.processes import Processes
from resim.errors import UserError
from resim.runs.checkpoints import write_atomically
from resim.runs.forecast import forecast
from resim.runs.progress import Progress

Batch = TypeVar("Batch")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A measurement of a model between two steps."""

    values: dict[str, float]
    """Numbers by name, such as knn/C5."""
    lines: tuple[str, ...] = ()
    """Lines to print."""


class NonFiniteLossError(UserError):
    """The loss of a step is not finite, or the weights or BatchNorm's statistics overflow in it."""

    def __init__(self, line: dict[str, float]) -> None:
        self.step, self.loss, self.lr = int(line["step"]), line["loss/total"], line["lr"]
        parts = [value for name, value in line.items() if name.startswith("loss/") and name != "loss/total"]
        is_loss = not all(map(math.isfinite, parts)) or not parts
        what = f"the loss is {self.loss}" if is_loss else "the weights or BatchNorm's statistics overflow"
        super().__init__(f"{what} at step {self.step} (lr {self.lr:g})")


class Log:
    """Collects the numbers of each step on the device and reads many steps together, so that no step waits for them.

    Only the first process writes; all must call `add` and `flush` alike, because numbers are averaged over processes.

    Args:
        folder: the run's folder.
        processes: whose numbers are averaged.
        progress: shows the last numbers.
        batch_size: images a step.
        epoch_steps: steps of an epoch; a fraction where an epoch is no whole number of steps.
        end: steps of the whole training; after the first ones the log prints how long the rest takes.
        workers: loader processes.
    """

    def __init__(
        self,
        folder: Path,
        processes: Processes,
        progress: Progress,
        *,
        batch_size: int,
        epoch_steps: float,
        end: int,
        workers: int,
    ) -> None:
        self.folder, self.processes, self.progress = folder, processes, progress
        self.batch_size, self.epoch_steps = batch_size, epoch_steps
        self._end, self._workers = end, workers
        self._num_flushes = self._steps_measured = 0
        self._seconds_measured = self._seconds_waited = 0.0
        self._has_forecast = False
        self._pending: list[tuple[int, float, dict[str, Tensor]]] = []
        self._since = time.perf_counter()
        self._waited = 0.0
        self._board: SummaryWriter | None = None

    def start(self, step: int) -> None:
        """Open the files at `step`, and remove lines that a stopped run wrote after it."""
        if not self.processes.first:
            return
        # a line of metrics.jsonl has the index of its step, one of probes.jsonl the number of steps done
        for name, end in (("metrics.jsonl", step), ("probes.jsonl", step + 1)):
            path = self.folder / name
            if path.exists():
                kept = "".join(line for line in _complete_lines(path) if json.loads(line)["step"] < end)
                write_atomically(path, lambda file, kept=kept: file.write(kept.encode()))
        self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step)
        self._since = time.perf_counter()

    def next_batch(self, batches: Iterator[Batch]) -> Batch:
        """The next batch; the time until it is there counts as waiting for data."""
        start = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - start
        return batch

    def add(self, step: int, lr: float, values: dict[str, Tensor]) -> None:
        """Keep the numbers of a step until `flush`; nothing is read from the device."""
        self._pending.append((step, lr, values))

    def flush(self) -> None:
        """Read the numbers that were added, average them over the processes, write and show them.

        Raises:
            NonFiniteLossError: a loss that is not finite, or weights that overflow.
        """
        if not self._pending:
            return
        names = list(self._pending[0][2])
        table = torch.stack([torch.stack([values[name].float() for name in names]) for _, _, values in self._pending])
        self.processes.average_([table])
        rows = table.tolist()
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        rate, waiting = self.batch_size * len(rows) / seconds, min(1.0, self._waited / seconds)
        self._since, self._waited = now, 0.0
        last = self._pending[-1][0]
        lines = []
        for (step, lr, _), row in zip(self._pending, rows, strict=True):
            values = {name if "/" in name else f"loss/{name}": value for name, value in zip(names, row, strict=True)}
            epoch = step / self.epoch_steps
            line = {"step": step, "epoch": int(epoch), "epoch_progress": epoch, "lr": lr} | values
            lines.append(line | {"images_per_second": rate, "data_wait": waiting})
        self._pending.clear()
        if self.processes.first:
            self._write(lines)
            self.progress.update(lines[-1])
            self._print_forecast(seconds, waiting * seconds, len(rows), self._end - last - 1)
        broken = next((line for line in lines if not math.isfinite(line["loss/total"])), None)
        if broken is not None:
            raise NonFiniteLossError(broken)

    def _print_forecast(self, seconds: float, waited: float, steps: int, left: int) -> None:
        """Print once, after the first steps, how long the rest takes. The first flush has slow steps and is ignored."""
        self._num_flushes += 1
        if self._num_flushes == 1 or self._has_forecast:
            return
        self._seconds_measured += seconds
        self._seconds_waited += waited
        self._steps_measured += steps
        # a GPU first uses up the batches that the loader has ready
        if left and self._steps_measured >= (1 if self.processes.device.type == "cpu" else 50):
            self._has_forecast = True
            text = forecast(
                seconds=self._seconds_measured, steps=self._steps_measured, left=left,
                waiting=self._seconds_waited / self._seconds_measured, workers=self._workers, now=time.time(),
            )  # fmt: skip
            self.progress.say(text)

    def _write(self, lines: list[dict[str, float]]) -> None:
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        assert self._board is not None
        for line in lines:
            for name, value in line.items():
                if name not in ("step", "epoch"):
                    self._board.add_scalar(name, value, int(line["step"]))

    def record_reading(self, step: int, measure: Callable[[], Reading]) -> None:
        """Measure the model after `step` steps, write and show the result; its time does not count as training.

        A reading that an earlier invocation of the run has written is not repeated.
        """
        path = self.folder / "probes.jsonl"
        if path.exists() and any(json.loads(line)["step"] == step for line in _complete_lines(path)):
            return
        start = time.perf_counter()
        reading = measure()
        assert self._board is not None
        if reading.values:
            line = {"step": step, "epoch": step // self.epoch_steps} | reading.values
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            for name, value in reading.values.items():
                self._board.add_scalar(f"probe/{name}", value, step)
        for text in reading.lines:
            self.progress.say(text)
        self._since += time.perf_counter() - start

    def add_picture(self, name: str, step: int, pixels: np.ndarray) -> None:
        """Add a picture (H, W, 3) uint8 to TensorBoard."""
        if self._board is not None:
            self._board.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Close the files."""
        if self._board is not None:
            self._board.close()


def _complete_lines(path: Path) -> list[str]:
    """The lines of a file, without one that was cut off while it was written."""
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("}\n")]


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The numbers of every step of a run, in order.

    Raises:
        UserError: no such file.
    """
    try:
        return [json.loads(line) for line in _complete_lines(path)]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
