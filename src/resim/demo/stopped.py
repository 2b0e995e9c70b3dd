"""The end of a demo that a signal stops: what remains of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from resim.errors import StoppedError
from resim.signals import catch_termination

AGAIN = "the demo cannot be continued: resim demo with another --out starts from the beginning"


@contextmanager
def ends_with_what_remains(out: Path) -> Iterator[None]:
    """If a signal stops what is inside, say what remains in the demo's folder.

    Raises:
        StoppedError: a signal has stopped it.
    """
    try:
        yield
    except (StoppedError, KeyboardInterrupt) as end:
        where = str(end) if isinstance(end, StoppedError) else "stopped"
        kept = f"the files in {out} are kept" if out.is_dir() else "nothing is written"
        raise StoppedError(f"{where}; {kept}; {AGAIN}") from None


@contextmanager
def stops_after_training() -> Iterator[None]:
    """A training inside catches signals; one in its last step or its last evaluation lets it finish, and counts here.

    Raises:
        StoppedError: a signal has arrived, and nothing inside has raised an error.
    """
    with catch_termination() as signals:
        yield
    if signals:
        raise StoppedError("stopped")
