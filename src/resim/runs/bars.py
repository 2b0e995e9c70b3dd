"""Progress bars, the same for every command. Where the output is no terminal there are none, and lines alone remain."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Watch = Callable[[int, int], None]
"""Called with the amount of work that is done, and with all of it."""


class _Console(Console):
    """A console whose reader may end (`| head`): the program goes on in silence."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


def open_console(*, show: bool = True) -> Console:
    """The standard output; with `show=False` nothing is printed."""
    return _Console(stderr=False, quiet=not show, highlight=False)


class Bars:
    """Bars one below the other: title, bar, amount, time elapsed, time left.

    Args:
        console: where to; None: the standard output.
        is_transient: whether the bars vanish at the end.
    """

    def __init__(self, console: Console | None = None, *, is_transient: bool = False) -> None:
        self.console = console or open_console()
        self.is_shown = self.console.is_terminal and not self.console.quiet
        """Whether there is a terminal to show them on."""
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            expand=True,
        )
        self._below: RenderableType = Group()
        self._live = Live(
            get_renderable=lambda: Group(self._bars, self._below), console=self.console, refresh_per_second=4,
            transient=is_transient,
        )  # fmt: skip

    def __enter__(self) -> Bars:
        if self.is_shown:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def add(self, title: str, total: int | None = None, *, done: int = 0, is_started: bool = True) -> Bar:
        """Add a bar; its clock runs from now on, or from its first update where it is not started."""
        return Bar(self._bars, title, total, done, is_started=is_started)

    def show_below(self, content: RenderableType) -> None:
        """Show `content` below the bars, in place of what was there."""
        self._below = content


class Bar:
    """One of `Bars`."""

    def __init__(self, bars: Progress, title: str, total: int | None, done: int, *, is_started: bool) -> None:
        self._bars = bars
        self._task = bars.add_task(title, total=total, completed=done, start=is_started)
        self.is_started = is_started

    def update(self, done: int, total: int | None = None, *, title: str | None = None) -> None:
        """Show that `done` is done, of `total` where that is known by now."""
        if not self.is_started:
            self._bars.start_task(self._task)
            self.is_started = True
        self._bars.update(self._task, completed=done, total=total, description=title)

    def advance(self, amount: int) -> None:
        """Show that `amount` more is done."""
        self._bars.update(self._task, advance=amount)

    def restart(self, title: str) -> None:
        """Begin at 0 under another title."""
        self._bars.reset(self._task, description=title)

    def set_visible(self, visible: bool) -> None:
        """Show or hide the bar."""
        self._bars.update(self._task, visible=visible)

    def remove(self) -> None:
        """Take the bar away."""
        self._bars.remove_task(self._task)


@contextmanager
def show_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """While inside, one bar on a terminal; call what it gives with the amount that is done."""
    with Bars(is_transient=True) as bars:
        yield bars.add(title, total).update
