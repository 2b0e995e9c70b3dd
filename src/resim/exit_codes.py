"""Exit codes of the `resim` command, and how a process of a run reports its code to the launcher that started it."""

from __future__ import annotations

import os
from pathlib import Path

FINISHED = 0
"""Everything was done; of a training also: `--stop-after` was reached and everything is saved."""
CRASHED = 1
"""An error of the program, with a stack trace; or another process of the run was lost, in one line."""
USER_ERROR = 2
"""Something that the user can mend, in one line."""
STOPPED = 75
"""A signal stopped the command, and a line says what is saved and which command continues. EX_TEMPFAIL.

Of a training, everything is saved: the same command with `--resume` continues. A command that keeps nothing, such as a
probe, has this code too, and 130 after Ctrl+C.
"""
INTERRUPTED = 130
"""Ctrl+C outside a training, a comparison or a demo, or while images are listed, or a second one."""

TABLE = {
    FINISHED: "finished (or --stop-after was reached; everything is saved)",
    CRASHED: "an error of the program, or another process of the run was lost",
    USER_ERROR: "something that you can fix, in one line",
    STOPPED: "stopped by SIGTERM, SIGINT, SIGHUP, SIGUSR1 or SIGUSR2: a line says what is saved and how to go on",
    INTERRUPTED: "a second Ctrl+C, or one in a command that saves nothing until its end",
}
"""What each code means, for the help text."""

FOLDER = "RESIM_EXIT_CODES"
"""Environment variable: the folder in which the processes of `resim.distributed.launch` leave their codes."""


def report(code: int) -> int:
    """Leave the code for the launcher, if there is one.

    Returns:
        The code to exit with: `code`, or under the launcher 0 in place of `STOPPED`, since torchrun starts processes
        again that end with any other code.
    """
    folder = os.environ.get(FOLDER)
    if not folder:
        return code
    start, rank = (os.environ.get(name, "0") for name in ("TORCHELASTIC_RESTART_COUNT", "RANK"))
    Path(folder, f"{start}-{rank}").write_text(str(code))
    return FINISHED if code == STOPPED else code


def reported(folder: Path) -> list[int]:
    """The codes that the processes of the last start have left, in no order."""
    files = list(folder.iterdir())
    last = max((int(file.name.partition("-")[0]) for file in files), default=0)
    return [int(file.read_text()) for file in files if file.name.startswith(f"{last}-")]
