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

from resim.counts import counted
from resim.distributed.processes import Processes
from resim.errors import UserError
from resim.runs.forecast import forecast
from resim.runs.lines import append, cut_lines, read_records
from resim.runs.progress import Progress

Batch = TypeVar("Batch")
Result = TypeVar("Result")


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
        """Open the files at `step`. Lines that a stopped run wrote after it, and damaged lines, are moved to FILE.cut.

        Raises:
            UserError: a file cannot be read or written.
        """
        if not self.processes.first:
            return
        # a line of metrics.jsonl has the index of its step, the others the number of steps done
        for name, end in (("metrics.jsonl", step), ("probes.jsonl", step + 1), ("scores.jsonl", step + 1)):
            cut = cut_lines(self.folder / name, end)
            if cut is None:
                continue
            what = [f"{counted(cut.num_later, 'line')} after step {step}"] * (cut.num_later > 0)
            if cut.damaged:
                numbers = ", ".join(map(str, cut.damaged[:5])) + (", ..." if len(cut.damaged) > 5 else "")
                what.append(f"{counted(len(cut.damaged), 'damaged or incomplete line')} (number {numbers})")
            self.progress.say(f"{name}: {' and '.join(what)} moved to {cut.copy}")
        self._board = self._on_board(lambda: SummaryWriter(str(self.folder / "tensorboard"), purge_step=step))
        self._since = time.perf_counter()

    def _on_board(self, act: Callable[[], Result]) -> Result:
        """Write to TensorBoard's file; a full disk is a UserError that names it."""
        try:
            return act()
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{self.folder / 'tensorboard'}: cannot be written ({reason})") from None

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
        append(self.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
        for line in lines:
            for name, value in line.items():
                if name not in ("step", "epoch"):
                    self._add_scalar(name, value, int(line["step"]))

    def _add_scalar(self, name: str, value: float, step: int) -> None:
        board = self._board
        assert board is not None
        self._on_board(lambda: board.add_scalar(name, value, step))

    def record_reading(self, step: int, measure: Callable[[], Reading]) -> None:
        """Measure the model after `step` steps, write and show the result; its time does not count as training.

        A reading that an earlier invocation of the run has written is not repeated.
        """
        path = self.folder / "probes.jsonl"
        if any(line["step"] == step for line in read_records(path)):
            return
        start = time.perf_counter()
        reading = measure()
        if reading.values:
            line = {"step": step, "epoch": step // self.epoch_steps} | reading.values
            append(path, (json.dumps(line) + "\n").encode())
            for name, value in reading.values.items():
                self._add_scalar(f"probe/{name}", value, step)
        for text in reading.lines:
            self.progress.say(text)
        self._since += time.perf_counter() - start

    def add_picture(self, name: str, step: int, pixels: np.ndarray) -> None:
        """Add a picture (H, W, 3) uint8 to TensorBoard."""
        board = self._board
        if board is not None:
            self._on_board(lambda: board.add_image(name, pixels, step, dataformats="HWC"))

    def close(self) -> None:
        """Close the files."""
        if self._board is not None:
            self._on_board(self._board.close)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The numbers of every step of a run, in order.

    Raises:
        UserError: no such file, or a line in it is damaged.
    """
    if not path.exists():
        raise UserError(f"{path}: cannot be read (No such file or directory)")
    return read_records(path)
