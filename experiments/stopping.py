"""The end of a study that a signal stops: what is kept, and the exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from resim.errors import StoppedError
from resim.exit_codes import FINISHED, STOPPED
from resim.signals import end_on_signals


def until_stopped(out: Path, run: Callable[[], object]) -> int:
    """Run a study; return its exit code, which is 75 if a signal stopped it.

    Args:
        out: folder of the study.
        run: runs what is not finished.
    """
    try:
        with end_on_signals():
            run()
    except (StoppedError, KeyboardInterrupt):
        line = "stopped: finished parts and checkpoints are kept; the same command goes on"
        print(f"{Path(sys.argv[0]).name}: {out}: {line}", file=sys.stderr)
        return STOPPED
    return FINISHED
