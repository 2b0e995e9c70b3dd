"""One display for a story of several stages: what is under way, how far it is, and how far all of it is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from resim.training.progress import Watch

_PLAIN_SECONDS = 20.0  # at least between two plain lines of a stage


class Stages:
    """Bars of the stages and of the whole on a terminal, a line now and then elsewhere.

    Args:
        stages: by name, about how long each takes compared with the others.
        console: where to.
    """

    def __init__(self, stages: Mapping[str, float], console: Console) -> None:
        self.console, self._shares = console, dict(stages)
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=None), TaskProgressColumn(), TimeElapsedColumn(),
            console=console, expand=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._tasks = {name: self._bars.add_task(name, total=1.0, start=False) for name in stages}
        self._all = self._bars.add_task("[bold]all of it", total=sum(stages.values()))

    def __enter__(self) -> Stages:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    @contextmanager
    def stage(self, name: str) -> Iterator[Watch]:
        """While inside, the stage is under way; what is given is told how much of it is done."""
        task, share = self._tasks[name], self._shares[name]
        before = self._bars.tasks[self._all].completed
        started = printed = time.perf_counter()
        self._bars.start_task(task)
        self._say(f"{name} ...")

        def watch(done: int, of: int) -> None:
            nonlocal printed
            part = done / max(of, 1)
            self._bars.update(task, completed=part)
            self._bars.update(self._all, completed=before + share * part)
            if time.perf_counter() - printed >= _PLAIN_SECONDS:
                printed = time.perf_counter()
                self._say(f"{name}: {part:.0%}")

        yield watch
        watch(1, 1)
        self._bars.stop_task(task)
        self._say(f"{name}: done in {time.perf_counter() - started:.0f} s")

    def _say(self, text: str) -> None:
        if not self.console.is_terminal:
            self.console.print(text, markup=False)
