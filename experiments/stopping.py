"""The end of a study by a signal or an error of the user: one line, and the exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from resim.errors import StoppedError, UserError
from resim.exit_codes import FINISHED, STOPPED, USER_ERROR
from resim.signals import end_on_signals


def until_stopped(out: Path, run: Callable[[], object]) -> int:
    """Run a study; return its exit code: 75 if a signal stopped it, 2 if the disk is full or labels cannot be read.

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
    except (UserError, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: {out}: {error}", file=sys.stderr)
        return USER_ERROR
    return FINISHED
