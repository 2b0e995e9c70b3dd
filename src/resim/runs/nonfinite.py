"""A loss, or weights, that are not finite: the batch is written to the run's folder, and the run goes back or stops.

The metrics are read every few steps, and always before a checkpoint is saved, so that the last checkpoint is the last
good state. From it the run is repeated up to the batch, which is then passed over: nothing of it enters weights,
statistics or queue.

nonfinite/step_000123.json      step, loss, lr, what the images of all processes were made of, whether it is passed over
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from resim.counts import counted
from resim.distributed.processes import Processes
from resim.errors import UserError
from resim.reading import read_json
from resim.runs.checkpoints import write_atomically
from resim.runs.log import Log, NonFiniteLossError
from resim.runs.progress import Progress

OnNonfinite = Literal["stop", "skip"]
MOST_PASSED_OVER = 5
"""Batches of a run that are passed over; one more stops it."""
_FOLDER = "nonfinite"
Describe = Callable[[], list[dict[str, Any]]]
"""What the images of a process in one batch were made of, one entry each."""


class GoBackError(Exception):
    """A batch is passed over: the run goes back to its last checkpoint and repeats the steps up to it."""


class Nonfinite:
    """The batches since the last reading of the metrics, and those that are passed over.

    All processes must call its methods alike.

    Args:
        out: the run's folder.
        processes: all processes of the training.
        policy: what happens after a loss that is not finite.
    """

    def __init__(self, out: Path, processes: Processes, policy: OnNonfinite) -> None:
        self._out, self._processes, self._policy = out, processes, policy
        self.passed_over = frozenset(processes.gather_objects(_passed_over(out) if processes.first else None)[0])
        """Steps whose batches are passed over."""
        self._recent: dict[int, tuple[Describe, dict[str, Any]]] = {}

    def lines(self) -> list[str]:
        """Which steps are passed over, to print; empty: none."""
        if not self.passed_over:
            return []
        steps = ", ".join(map(str, sorted(self.passed_over)))
        return [f"passes over {counted(len(self.passed_over), 'batch', 'batches')}: step {steps}, see {self._folder}"]

    def keep(self, step: int, describe: Describe, **extra: Any) -> None:
        """Keep what a batch was made of until the next reading; `extra` goes into the file as it is."""
        self._recent[step] = describe, extra

    def flush(self, log: Log, progress: Progress) -> None:
        """Read the metrics of the steps since the last reading.

        Raises:
            GoBackError: a loss is not finite, and its batch is to be passed over.
            UserError: a loss is not finite, and the run stops.
        """
        try:
            log.flush()
        except NonFiniteLossError as error:
            self._write_and_raise(error, progress)
        self._recent.clear()

    @property
    def _folder(self) -> Path:
        return self._out / _FOLDER

    def _write_and_raise(self, error: NonFiniteLossError, progress: Progress) -> None:
        describe, extra = self._recent[error.step]
        images = [image for part in self._processes.gather_objects(describe()) for image in part]
        skips = self._policy == "skip" and len(self.passed_over) < MOST_PASSED_OVER
        path = self._folder / f"step_{error.step:06d}.json"
        if self._processes.first:
            content = {"step": error.step, "loss": str(error.loss), "lr": error.lr, "passed_over": skips}
            text = json.dumps(content | extra | {"images": images}, indent=1) + "\n"
            write_atomically(path, lambda file: file.write(text.encode()))
        what = f"{error}: its batch is in {path}"
        if skips:
            count = f"{len(self.passed_over) + 1} of at most {MOST_PASSED_OVER}"
            progress.say(f"{what}; it is passed over ({count}), and the run goes back to its last checkpoint")
            raise GoBackError from None
        if self._policy == "skip":
            has = "has" if MOST_PASSED_OVER == 1 else "have"
            what += f"; {counted(MOST_PASSED_OVER, 'batch', 'batches')} {has} been passed over, the limit"
        raise UserError(f"{what}; {self._remedy()}") from None

    def _remedy(self) -> str:
        """How to continue."""
        last = self._out / "checkpoints" / "last.pt"
        if not last.exists():
            return "no checkpoint has been saved: start the run with a lower --lr and another --out"
        lower = (
            f"start another run with a lower --lr from it (--start-from {self._out}), or from an earlier one if its "
            "losses rise already, since --resume keeps the lr"
        )
        skip = "" if self._policy == "skip" else ", or pass over the batch (--resume --on-nonfinite skip)"
        return f"{last} is of the last good state: {lower}{skip}"


def _passed_over(out: Path) -> list[int]:
    """The steps whose batches the run in `out` passes over."""
    steps = []
    for path in sorted((out / _FOLDER).glob("step_*.json")):
        try:
            content = read_json(path)
            steps += [int(content["step"])] if content["passed_over"] else []
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise UserError(f"{path}: cannot be read ({error}): restore it, or remove it") from None
    return steps
