"""A bar for the probe that runs."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from resim.probes.unlabelled import Told


class ProbeBars:
    """One bar for what is measured; nothing where the output is no terminal."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip

    def __enter__(self) -> ProbeBars:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def of(self, name: str) -> Told:
        """The function through which `probe_network` reports its progress with the network of this name."""
        current: dict[str, Any] = {}

        def report(what: str, done: int, of: int) -> None:
            if current.get("what") != what:
                if current:
                    self._bars.remove_task(current["task"])
                current.update(what=what, task=self._bars.add_task(f"{name}: {what}", total=of or None))
            self._bars.update(current["task"], advance=done)

        return report
