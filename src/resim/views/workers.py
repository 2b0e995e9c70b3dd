"""Worker processes of the loader: their memory and signals, and the report of a killed one."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

from resim.acceleration import allocator
from resim.errors import UserError


def start_worker(worker: int) -> None:
    """Set the memory and the signals of a worker process, as its first action."""
    memory = allocator()
    if memory is not None:
        memory.keep_memory_if_parted()
    _ignore_signals_of_others()


def _ignore_signals_of_others() -> None:
    """Let only the parent end this worker: a job's signal reaches all processes, and the parent finishes its step."""
    for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # reports the sender of a signal; not on all systems
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_on_parents_signal, daemon=True).start()


def _exit_on_parents_signal() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


@contextlib.contextmanager
def report_killed_workers() -> Iterator[None]:
    """Convert PyTorch's errors for a killed worker process, which a signal raises at any moment, into a UserError.

    Raises:
        UserError: a worker process of the loader was killed.
    """
    try:
        yield
        return
    except RuntimeError as error:
        if not any("DataLoader worker" in str(e) for e in (error, error.__context__)):
            raise
    except (ConnectionError, EOFError):  # it was killed during a transfer
        with contextlib.suppress(RuntimeError):
            time.sleep(2)  # wait for PyTorch's signal, which would interrupt the handling of the error
    raise UserError(
        "a worker process of the loader was killed, perhaps because memory is full: use fewer --workers; "
        "--resume continues from the last checkpoint"
    )
