"""When a training reads its metrics, saves a checkpoint and ends: the same answer on every process."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from resim.distributed.processes import Processes

_SLOW_STEPS = 2  # in them kernels are compiled and loader processes start: their speed is read separately


class LoopSettings(Protocol):
    """The settings of a run that its loop reads: see `RunConfig`."""

    @property
    def log_every(self) -> int:
        """Steps between two readings of the metrics."""
        ...

    @property
    def checkpoint_minutes(self) -> float:
        """Minutes between two checkpoints; 0: after every step."""
        ...

    @property
    def stop_after(self) -> int:
        """Stop after this many steps of this invocation; 0: run to the end."""
        ...


class Due(NamedTuple):
    """What is due after a step."""

    read: bool
    """Read the metrics from the device."""
    save: bool
    """Write a checkpoint; the metrics are read before it."""


class Clock:
    """Counts the steps of a training and says what is due after each.

    A checkpoint is due at every boundary (the end of an epoch, an evaluation), every `run.checkpoint_minutes`, and
    before an early end by a signal or by `run.stop_after`. All processes must call `tick` alike.

    Args:
        run: how often metrics are read and checkpoints saved.
        processes: all processes of the training.
        signals: the list of `catch_termination`: a signal that any process has received ends the training.
        step: steps done so far.
        end: steps of the whole training.
        boundary: steps from one boundary to the next.
    """

    def __init__(
        self, run: LoopSettings, processes: Processes, signals: Sequence[int], *, step: int, end: int, boundary: int
    ) -> None:
        self.step = step
        """Steps done."""
        self._run, self._processes, self._signals = run, processes, signals
        self._last = min(end, step + run.stop_after) if run.stop_after else end
        self._first_reading = step + _SLOW_STEPS
        self._boundary = boundary
        self._saved_at = time.monotonic()
        self.is_over = step >= self._last
        """Whether the last step of this invocation is done."""
        self.is_stopped = False
        """Whether a signal ends the training before its last step."""

    def tick(self) -> Due:
        """Count a step, and return what is due after it."""
        self.step += 1
        boundary = self.step % self._boundary == 0
        read = boundary or self.step % self._run.log_every == 0 or self.step in (self._first_reading, self._last)
        save = boundary
        # an agreement of GPUs waits for the device, so it is made only when the metrics are read anyway
        if self._processes.device.type == "cpu" or self._processes.count == 1 or read:
            overdue = time.monotonic() - self._saved_at >= 60 * self._run.checkpoint_minutes
            stop, due = self._processes.agree(bool(self._signals), overdue)
            self.is_over = stop or self.step >= self._last
            self.is_stopped = stop and self.step < self._last
            save = save or due or self.is_over
        return Due(read or save, save)

    def stop(self) -> None:
        """End the training before its next step, because of a signal."""
        self.is_over = self.is_stopped = True

    def restart_minutes(self) -> None:
        """Count the minutes to the next checkpoint from now."""
        self._saved_at = time.monotonic()
