"""The lock of a run's folder: one run at a time writes there.

The lock is `flock` on the file .lock: it ends with the processes that have the file open, however they end. A forked
process inherits open files, and loader processes outlive a killed training for seconds, so every forked process closes
the file at once: the lock is that of the training process alone.

Several machines: on NFS, Linux sends `flock` to the server as a lock of the whole file (since 2.6.12), so it is valid
between machines, unless the folder is mounted with local_lock=flock or nolock. The server of NFSv4 frees the lock of a
machine that died only when its lease ends, after 90 s as a rule; until then a restart elsewhere is refused. A file
system without locks (Lustre without -o flock) has no protection against two runs in one folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from resim.distributed.processes import Processes
from resim.errors import UserError

WAIT_SECONDS = 10.0
"""How long a run that continues waits for the lock: a killed run's processes may still be ending."""

_PAUSE_SECONDS = 0.1
_locks: set[int] = set()  # descriptors of this process, for the processes that are forked from it


@contextlib.contextmanager
def lock_folder(out: Path, processes: Processes, *, wait: float = 0.0) -> Iterator[None]:
    """While inside, no other run can use the folder.

    Args:
        out: the folder; it is created.
        processes: the first one locks it.
        wait: seconds to wait for the end of another run that uses it.

    Raises:
        UserError: another run uses it, or it cannot be created.
    """
    if not processes.first:
        yield
        return
    created = [folder for folder in (out, *out.parents) if not folder.exists()]
    lock = _take_lock(out, wait)
    descriptor = lock.fileno()
    _locks.add(descriptor)
    with lock:
        try:
            yield
        finally:
            _locks.discard(descriptor)
            (out / ".lock").unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # a run that could not start leaves nothing
                for folder in created:
                    folder.rmdir()


def _take_lock(out: Path, wait: float) -> TextIO:
    path, end = out / ".lock", time.monotonic() + wait
    while True:
        try:
            out.mkdir(parents=True, exist_ok=True)
            lock = path.open("w")
        except OSError as error:
            raise UserError(f"--out {out}: cannot be written to ({error.strerror})") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
        except OSError:  # a file system without locks
            return lock
        else:
            if _is_file(lock, path):
                return lock
            lock.close()  # the run that had the lock has just removed the file: lock the new one
            continue
        if time.monotonic() >= end:
            waited = f", after {wait:g} s of waiting" if wait else ""
            raise UserError(f"--out {out}: another run uses it{waited}: wait for its end, or name another folder")
        time.sleep(_PAUSE_SECONDS)


def _is_file(lock: TextIO, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    except OSError:
        return False


def _close_locks() -> None:
    for descriptor in _locks:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _locks.clear()


os.register_at_fork(after_in_child=_close_locks)
