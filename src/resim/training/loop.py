"""What every training does between two batches: numbers read now and then, checkpoints, an end when asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

from torch import Tensor

from resim.training.log import Log
from resim.training.processes import Processes

Batch = TypeVar("Batch")
_SLOW_STEPS = 2  # in which kernels are compiled and loader processes start: read by themselves


class LoopSettings(Protocol):
    """What a run says about its loop: see `RunConfig`."""

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


def run_steps(
    batches: Iterator[Batch],
    take_step: Callable[[Batch, int], tuple[float, dict[str, Tensor]]],
    checkpoint: Callable[[int], None],
    log: Log,
    run: LoopSettings,
    processes: Processes,
    signals: list[int],
    *,
    step: int,
    end: int,
    every: int,
) -> int:
    """Take steps until the end, or until a signal or `run.stop_after` ends them sooner.

    Args:
        batches: one a step.
        take_step: given a batch and the step's number, from 0: takes it and returns the learning rate and the step's
            numbers, on the device.
        checkpoint: called with the number of steps done: at every boundary, when one is due by the clock, and before
            an early end; the metrics are written by then.
        log: takes the numbers.
        run: how often.
        processes: all of which take part.
        signals: what `catch_termination` gives.
        step: steps done so far.
        end: steps in all.
        every: steps from one boundary (an epoch, an evaluation) to the next.

    Returns:
        Steps done in all.
    """
    saved_at, first_reading = time.monotonic(), step + _SLOW_STEPS
    invocation_end = min(end, step + run.stop_after) if run.stop_after else end
    stop = step >= invocation_end
    while not stop:
        waiting = time.perf_counter()
        batch = next(batches)
        log.waited(time.perf_counter() - waiting)
        log.add(step, *take_step(batch, step))
        step += 1

        reading = step % run.log_every == 0 or step in (first_reading, invocation_end)
        boundary = step % every == 0
        if reading or boundary:
            log.flush()
        save = stop = False
        # on GPUs agreeing waits for the device, so it is done where the metrics are read anyway
        if processes.device.type == "cpu" or processes.count == 1 or reading or boundary:
            overdue = time.monotonic() - saved_at >= 60 * run.checkpoint_minutes
            stop, save = processes.agree(bool(signals), overdue)
            stop = stop or step >= invocation_end
        if save or stop or boundary:
            log.flush()
            checkpoint(step)
            saved_at = time.monotonic()
    return step
