"""One display for a story of several stages: what is under way, how far it is, and how much time is left."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from resim.runs.forecast import long
from resim.runs.progress import Watch

_PLAIN_SECONDS = 20.0  # at least between two plain lines of a stage


class Stages:
    """Bars of the stages and of the whole on a terminal, a line now and then elsewhere.

    Args:
        names: of the stages, in their order.
        seconds: that all of them may take together.
        began: `time.perf_counter` when the clock started.
        console: where to.
    """

    def __init__(self, names: Sequence[str], seconds: float, began: float, console: Console) -> None:
        self.console, self._seconds, self._began = console, seconds, began
        self._expected: dict[str, float] = {}
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=None), TaskProgressColumn(), TimeElapsedColumn(),
            console=console, expand=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._tasks = {name: self._bars.add_task(name, total=1.0, start=False) for name in names}
        self._all = self._bars.add_task("[bold]all of it", total=seconds)

    def __enter__(self) -> Stages:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    @property
    def used(self) -> float:
        """Seconds since the clock started."""
        return time.perf_counter() - self._began

    @property
    def left(self) -> float:
        """Seconds of those that all stages may take."""
        return self._seconds - self.used

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Take over a plan: the seconds of each stage still to come; stages that it does not name are left out."""
        self._expected = dict(seconds)
        for name, task in self._tasks.items():
            if not self._bars.tasks[task].started:
                self._bars.update(task, visible=name in seconds)
        self._bars.update(self._all, total=max(self.used + sum(seconds.values()), 1e-9))

    @contextmanager
    def stage(self, name: str) -> Iterator[Watch]:
        """While inside, the stage is under way; call what is given with how much of it is done, and how much there is.

        The stage's expected seconds are printed with the time that is left.
        """
        task = self._tasks[name]
        started = printed = time.perf_counter()
        self._bars.start_task(task)
        about = f"about {long(self._expected[name])}; " if name in self._expected else ""
        self._say(f"{name} ... ({about}{self._time_left()})")

        def watch(done: int, of: int) -> None:
            nonlocal printed
            part = done / max(of, 1)
            self._bars.update(task, completed=part)
            self._bars.update(self._all, completed=self.used, description=f"[bold]all of it, {self._time_left()}")
            if time.perf_counter() - printed >= _PLAIN_SECONDS:
                printed = time.perf_counter()
                self._say(f"{name}: {part:.0%} ({self._time_left()})")

        yield watch
        watch(1, 1)
        self._bars.stop_task(task)
        self._say(f"{name}: done in {long(time.perf_counter() - started)}")

    def _time_left(self) -> str:
        return f"{long(self.left)} left" if self.left >= 0 else f"{long(-self.left)} over"

    def _say(self, text: str) -> None:
        if not self.console.is_terminal:
            self.console.print(text, markup=False)
