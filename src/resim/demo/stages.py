"""The progress of several stages: which one is under way, how far it is, and how much time is left."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console

from resim.runs.bars import Bars, Watch
from resim.runs.forecast import in_two_units

_LINE_SECONDS = 20.0  # at least between two lines of a stage where there are no bars


class Stages:
    """A bar for each stage and one for the time on a terminal, a line now and then elsewhere.

    Args:
        names: names of the stages, in their order.
        seconds: time that all of them may take together.
        began: `time.perf_counter` when the clock started.
        console: where to.
    """

    def __init__(self, names: Sequence[str], seconds: float, began: float, console: Console) -> None:
        self.console, self._seconds, self._began = console, seconds, began
        self._expected: dict[str, float] = {}
        self._bars = Bars(console)
        self._bar_of = {name: self._bars.add(name, is_started=False) for name in names}
        self._all_seconds = round(seconds)
        self._all = self._bars.add("all of it, seconds", self._all_seconds)

    def __enter__(self) -> Stages:
        self._bars.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.__exit__(*error)

    @property
    def used(self) -> float:
        """Seconds since the clock started."""
        return time.perf_counter() - self._began

    @property
    def left(self) -> float:
        """Seconds left of those that all stages may take."""
        return self._seconds - self.used

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Show a plan: the expected seconds of each stage that is not done; the others are not shown."""
        self._expected = dict(seconds)
        for name, bar in self._bar_of.items():
            if not bar.is_started:
                bar.set_visible(name in seconds)
        self._all_seconds = max(round(self.used + sum(seconds.values())), 1)
        self._show_time()

    @contextmanager
    def stage(self, name: str) -> Iterator[Watch]:
        """While inside, the stage is under way; call what it gives with the amount that is done and all of it."""
        bar = self._bar_of[name]
        started = printed = time.perf_counter()
        total = 1
        expected = f"about {in_two_units(self._expected[name])}; " if name in self._expected else ""
        self._print(f"{name} ... ({expected}{self._time_left()})")
        bar.set_visible(True)
        bar.update(0)

        def watch(done: int, of: int) -> None:
            nonlocal printed, total
            total = max(of, 1)
            bar.update(done, total)
            self._show_time()
            if time.perf_counter() - printed >= _LINE_SECONDS:
                printed = time.perf_counter()
                self._print(f"{name}: {done / total:.0%} ({self._time_left()})")

        yield watch
        watch(total, total)
        self._print(f"{name}: done in {in_two_units(time.perf_counter() - started)}")

    def _show_time(self) -> None:
        self._all.update(round(self.used), self._all_seconds, title=f"all of it, seconds, {self._time_left()}")

    def _time_left(self) -> str:
        return f"{in_two_units(self.left)} left" if self.left >= 0 else f"{in_two_units(-self.left)} over"

    def _print(self, text: str) -> None:
        if not self._bars.is_shown:
            self.console.print(text, markup=False)
