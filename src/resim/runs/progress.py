"""The progress of a training: bars and numbers on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.columns import Columns
from rich.console import Console
from rich.text import Text

from resim.runs.bars import Bars, Watch, open_console

_LINE_SECONDS = 10.0  # at least between two lines where there are no bars


class Progress:
    """Bars of the epoch and of the whole training with the last numbers below them, or a line now and then.

    Args:
        steps: steps of the whole training.
        epoch_steps: steps of an epoch; None: the training is counted in steps alone.
        first_step: first step of this invocation.
        show: whether anything is printed.
        console: where to; None: the standard output.
        watch: called with the steps done and all steps, whatever is shown.
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
        self._bars = Bars(console or open_console(show=show))
        self._steps, self._epoch_steps = steps, epoch_steps
        if epoch_steps is not None:
            self._epoch_bar = self._bars.add("epoch", epoch_steps, done=first_step % epoch_steps)
        self._total_bar = self._bars.add("total" if epoch_steps else "steps", steps, done=first_step)
        self._epoch = -1
        self._first_step, self._started, self._printed = first_step, time.perf_counter(), 0.0

    def __enter__(self) -> Progress:
        self._started = time.perf_counter()
        self._bars.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.__exit__(*error)

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._bars.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def show_bar(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """While inside, a bar for work between two steps; call what it gives with the amount that is done."""
        self.say(title)
        bar = self._bars.add(title, total)
        try:
            yield bar.update
        finally:
            bar.remove()

    def update(self, line: dict[str, float]) -> None:
        """Show the numbers of a step, in the form that they have in metrics.jsonl."""
        done = int(line["step"]) + 1
        if self._watch is not None:
            self._watch(done, self._steps)
        self._total_bar.update(done)
        position = [f"step {done}/{self._steps}"]
        if self._epoch_steps is not None:
            epoch, epochs = int(line["epoch"]), self._steps // self._epoch_steps
            in_epoch = done - epoch * self._epoch_steps
            if epoch != self._epoch:
                self._epoch = epoch
                self._epoch_bar.restart(f"epoch {epoch + 1}/{epochs}")
            self._epoch_bar.update(in_epoch)
            position = [f"epoch {epoch + 1}/{epochs}", f"step {in_epoch}/{self._epoch_steps}"]
        if self._bars.is_shown:
            self._bars.show_below(_numbers(line))
            return
        now = time.perf_counter()
        if now - self._printed >= _LINE_SECONDS or done == self._steps:
            self._printed = now
            left = (now - self._started) / max(1, done - self._first_step) * (self._steps - done)
            numbers = [f"{label} {value}" for label, value in _columns(line)]
            self.say("  ".join([*position, *numbers, f"left {_duration(left)}"]))


def _columns(line: dict[str, float]) -> list[tuple[str, str]]:
    """The numbers that are shown, as label and text."""
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
    """Labels and values in columns, in as many rows as fit the terminal's width."""
    cells = [Text.assemble((f"{label} ", "dim"), value) for label, value in _columns(line)]
    return Columns(cells, padding=(0, 3))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
