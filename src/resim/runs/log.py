"""Numbers of a run: one line a step in metrics.jsonl, TensorBoard, and what a person watches."""

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
    """What was found out about a model between two steps."""

    values: dict[str, float]
    """Numbers by name, such as knn/C5."""
    lines: tuple[str, ...] = ()
    """What to tell a person."""


class Log:
    """Collects each step's numbers on the device and reads them together, so that a step never waits for them.

    Only the first process writes; all must call `add` and `flush` alike, because numbers are averaged over processes.

    Args:
        folder: of the run.
        processes: whose numbers are averaged.
        progress: shows the last numbers.
        batch_size: images a step.
        steps: of an epoch; where an epoch is no whole number of steps, a fraction.
        end: steps of the whole training, of which it says after the first ones how long they take.
        workers: loader processes.
    """

    def __init__(
        self,
        folder: Path,
        processes: Processes,
        progress: Progress,
        *,
        batch_size: int,
        steps: float,
        end: int,
        workers: int,
    ) -> None:
        self.folder, self.processes, self.progress = folder, processes, progress
        self.batch_size, self.steps_per_epoch = batch_size, steps
        self._end, self._workers = end, workers
        self._readings = self._steps_measured = 0
        self._seconds_measured = self._seconds_waited = 0.0
        self._has_forecast = False
        self._pending: list[tuple[int, float, dict[str, Tensor]]] = []
        self._since = time.perf_counter()
        self._waited = 0.0
        self._board: SummaryWriter | None = None

    def start(self, step: int) -> None:
        """Open the files at `step`; what a stopped run wrote beyond it is dropped."""
        if not self.processes.first:
            return
        # a line of the metrics is of the step that follows, one of the probes is of the steps done
        for name, end in (("metrics.jsonl", step), ("probes.jsonl", step + 1)):
            path = self.folder / name
            if path.exists():
                kept = "".join(line for line in _whole_lines(path) if json.loads(line)["step"] < end)
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
        """Remember a step's numbers; nothing is read from the device yet."""
        self._pending.append((step, lr, values))

    def flush(self) -> None:
        """Read what is pending, average it over the processes, write and show it.

        Raises:
            UserError: a loss that is not finite.
        """
        if not self._pending:
            return
        names = list(self._pending[0][2])
        table = torch.stack([torch.stack([values[name].float() for name in names]) for _, _, values in self._pending])
        self.processes.average_([table])
        rows = table.tolist()
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        rate, waited = self.batch_size * len(rows) / seconds, min(1.0, self._waited / seconds)
        self._since, self._waited = now, 0.0
        last = self._pending[-1][0]
        lines = []
        for (step, lr, _), row in zip(self._pending, rows, strict=True):
            values = {name if "/" in name else f"loss/{name}": value for name, value in zip(names, row, strict=True)}
            epoch = step / self.steps_per_epoch
            line = {"step": step, "epoch": int(epoch), "epoch_progress": epoch, "lr": lr} | values
            lines.append(line | {"images_per_second": rate, "data_wait": waited})
        self._pending.clear()
        if self.processes.first:
            self._write(lines)
            self.progress.update(lines[-1])
            self._forecast(seconds, waited * seconds, len(rows), self._end - last - 1)
        broken = next((line for line in lines if not math.isfinite(line["loss/total"])), None)
        if broken is not None:
            raise UserError(
                f"the loss is {broken['loss/total']} at step {broken['step']}: try a lower --lr; "
                f"what was saved before it stays in {self.folder / 'checkpoints'}"
            )

    def _forecast(self, seconds: float, waited: float, steps: int, left: int) -> None:
        """Once, after the first steps: how long the rest takes. The first reading, of slow steps, does not count."""
        self._readings += 1
        if self._readings == 1 or self._has_forecast:
            return
        self._seconds_measured += seconds
        self._seconds_waited += waited
        self._steps_measured += steps
        # a GPU uses up first what the loader had ready
        if left and self._steps_measured >= (1 if self.processes.device.type == "cpu" else 50):
            self._has_forecast = True
            told = forecast(
                seconds=self._seconds_measured, steps=self._steps_measured, left=left,
                waiting=self._seconds_waited / self._seconds_measured, workers=self._workers, now=time.time(),
            )  # fmt: skip
            self.progress.say(told)

    def _write(self, lines: list[dict[str, float]]) -> None:
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        assert self._board is not None
        for line in lines:
            for name, value in line.items():
                if name not in ("step", "epoch"):
                    self._board.add_scalar(name, value, int(line["step"]))

    def look(self, step: int, look: Callable[[], Reading]) -> None:
        """Write and show what is found out after `step` steps; the time that it takes is not the training's.

        A reading that an earlier invocation of the run has written is not taken again.
        """
        path = self.folder / "probes.jsonl"
        if path.exists() and any(json.loads(line)["step"] == step for line in _whole_lines(path)):
            return
        started = time.perf_counter()
        reading = look()
        assert self._board is not None
        if reading.values:
            line = {"step": step, "epoch": step // self.steps_per_epoch} | reading.values
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            for name, value in reading.values.items():
                self._board.add_scalar(f"probe/{name}", value, step)
        for text in reading.lines:
            self.progress.say(text)
        self._since += time.perf_counter() - started

    def picture(self, name: str, step: int, pixels: np.ndarray) -> None:
        """Show a picture (H, W, 3) uint8 in TensorBoard."""
        if self._board is not None:
            self._board.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Close the files."""
        if self._board is not None:
            self._board.close()


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file, without one that was cut off while it was written."""
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("}\n")]


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Every step's numbers of a run, in order.

    Raises:
        UserError: no such file.
    """
    try:
        return [json.loads(line) for line in _whole_lines(path)]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
