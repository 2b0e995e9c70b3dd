"""torchrun with the exit codes of `resim`.

    python -m resim.distributed.launch --nproc-per-node 8 -m resim pretrain DIR --out RUN --resume auto

Takes torchrun's options. torchrun's own exit code is 1 for whatever happens to its processes, so that a script cannot
distinguish a run that was stopped and saved from one that crashed. All of `STOP_SIGNALS` reach the processes.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousError

from resim.exit_codes import CRASHED, FINISHED, FOLDER, STOPPED, USER_ERROR, reported

_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"


def main(argv: Sequence[str] | None = None) -> int:
    """Start the processes and wait for their end.

    Args:
        argv: torchrun's options and the command; None: those of the command line.

    Returns:
        The exit code, one of `resim.exit_codes`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if "--signals-to-handle" in torchrun.get_args_parser().format_help():
        words = ["--signals-to-handle", _SIGNALS, *words]
    # it repeats as a warning and an error what is reported below, or what the processes report
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    logging.getLogger("torch.distributed.elastic.agent.server.api").setLevel(logging.ERROR)
    failures: dict[int, ProcessFailure] = {}
    with tempfile.TemporaryDirectory(prefix="resim-") as folder:
        os.environ[FOLDER] = folder
        try:
            torchrun.main(words)
        except ChildFailedError as error:
            failures = error.failures
        except SignalException:
            pass  # the processes have received it, and have ended
        except RendezvousError as error:
            reason = str(error).partition("\n")[0]
            print(
                f"resim: the launchers of the hosts did not meet, or do not reach each other any more ({reason}): "
                "start all of them again with the same command and --resume auto",
                file=sys.stderr,
            )
            return CRASHED
        codes = reported(Path(folder))
    killed = {
        rank: failure
        for rank, failure in failures.items()
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM  # which torchrun sends to the others
    }
    for rank, failure in killed.items():
        name = signal.Signals(-failure.exitcode).name
        print(
            f"resim: rank {rank} (process {failure.pid}) was killed by {name}; resume with the same "
            "command and --resume auto",
            file=sys.stderr,
        )
    return joint_code(codes, has_failed=bool(failures), is_killed=bool(killed))


def joint_code(codes: Sequence[int], *, has_failed: bool, is_killed: bool = False) -> int:
    """The exit code of a run.

    Args:
        codes: what its processes reported; one that crashes reports nothing.
        has_failed: whether a process ended with a code other than 0.
        is_killed: whether a process was killed.
    """
    if USER_ERROR in codes and not is_killed:
        return USER_ERROR
    if has_failed or not codes:
        return CRASHED
    return next((code for code in (CRASHED, STOPPED) if code in codes), FINISHED)


if __name__ == "__main__":
    sys.exit(main())
