"""What a person watches while a model trains: bars and numbers on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

Watch = Callable[[int, int], None]
"""Called with how much is done, and how much there is."""
_PLAIN_SECONDS = 10.0  # at least between two plain lines


class _Console(Console):
    """A console whose reader may go away (`| head`): the training goes on in silence."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


class Progress:
    """Epoch and total bars with the last numbers below them; where the output is no terminal, a line now and then.

    Args:
        steps: of the whole training.
        epoch_steps: steps of an epoch; None: the training is counted in steps alone.
        first_step: where it begins.
        show: nothing is printed otherwise.
        console: where to; None: the standard output.
        watch: told of the steps done and of all steps, whatever is shown.
    """

    def __init__(
        self,
        *,
        steps: int,
        epoch_steps: int | None = None,
        first_step: int = 0,
        show: bool = True,
        console: Console | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._watch = watch
        self.console = console or _Console(stderr=False, quiet=not show, highlight=False)
        self._steps, self._epoch_steps = steps, epoch_steps
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            expand=True,
        )
        if epoch_steps is not None:
            self._epoch = self._bars.add_task("epoch", total=epoch_steps, completed=first_step % epoch_steps)
        self._total = self._bars.add_task("total" if epoch_steps else "steps", total=steps, completed=first_step)
        self._live: Live | None = None
        self._shown_epoch = -1
        self._first_step, self._started, self._printed = first_step, time.perf_counter(), 0.0

    def __enter__(self) -> Progress:
        self._started = time.perf_counter()
        if self.console.is_terminal and not self.console.quiet:
            self._live = Live(self._bars, console=self.console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def aside(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """While inside, a bar for something between two steps; it is given how much of the total is done."""
        self.say(what)
        bar = self._bars.add_task(what, total=total)
        try:
            yield lambda done: self._bars.update(bar, completed=done)
        finally:
            self._bars.remove_task(bar)

    def update(self, line: dict[str, float]) -> None:
        """Show the numbers of a step, as they stand in metrics.jsonl."""
        done = int(line["step"]) + 1
        if self._watch is not None:
            self._watch(done, self._steps)
        self._bars.update(self._total, completed=done)
        where = [f"step {done}/{self._steps}"]
        if self._epoch_steps is not None:
            epoch, epochs = int(line["epoch"]), self._steps // self._epoch_steps
            in_epoch = done - epoch * self._epoch_steps
            if epoch != self._shown_epoch:
                self._shown_epoch = epoch
                self._bars.reset(self._epoch, description=f"epoch {epoch + 1}/{epochs}")
            self._bars.update(self._epoch, completed=in_epoch)
            where = [f"epoch {epoch + 1}/{epochs}", f"step {in_epoch}/{self._epoch_steps}"]
        if self._live is not None:
            self._live.update(Group(self._bars, _numbers(line)))
            return
        now = time.perf_counter()
        if now - self._printed >= _PLAIN_SECONDS or done == self._steps:
            self._printed = now
            left = (now - self._started) / max(1, done - self._first_step) * (self._steps - done)
            numbers = [f"{label} {value}" for label, value in _columns(line)]
            self.say("  ".join([*where, *numbers, f"left {_duration(left)}"]))


def _columns(line: dict[str, float]) -> list[tuple[str, str]]:
    """The numbers worth a glance, as label and text."""
    columns = [("loss", f"{line['loss/total']:.3f}")]
    for name, value in line.items():
        if name.startswith("loss/") and name != "loss/total":
            columns.append((name.removeprefix("loss/"), f"{value:.3f}"))
    for name, value in line.items():
        if name.startswith("accuracy/"):
            columns.append((f"acc {name.removeprefix('accuracy/')}", f"{value:.1%}"))
    columns += [
        ("lr", f"{line['lr']:.4g}"),
        ("images/s", f"{line['images_per_second']:.1f}"),
        ("waiting for data", f"{line['data_wait']:.0%}"),
    ]
    return columns


def _numbers(line: dict[str, float]) -> Columns:
    """Label and value side by side, in as many rows as the terminal's width asks for."""
    cells = [Text.assemble((f"{label} ", "dim"), value) for label, value in _columns(line)]
    return Columns(cells, padding=(0, 3))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
