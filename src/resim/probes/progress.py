"""A bar for the probe that runs."""

from __future__ import annotations

from rich.console import Console

from resim.probes.unlabelled import ProbeProgress
from resim.runs.bars import Bar, Bars


class ProbeBars:
    """One bar for the part of a probe that is computed; nothing where the output is no terminal."""

    def __init__(self, console: Console) -> None:
        self._bars = Bars(console, is_transient=True)

    def __enter__(self) -> ProbeBars:
        self._bars.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.__exit__(*error)

    def of(self, name: str) -> ProbeProgress:
        """The function through which `probe_network` reports its progress with the network of this name."""
        part: str | None = None
        bar: Bar | None = None

        def report(what: str, done: int, of: int) -> None:
            nonlocal part, bar
            if bar is None or what != part:
                if bar is not None:
                    bar.remove()
                part, bar = what, self._bars.add(f"{name}: {what}", of or None)
            bar.advance(done)

        return report
