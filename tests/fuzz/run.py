"""One input at a time: limits of time and memory, files that are written elsewhere, and findings."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from resim.errors import UserError
from tests.fuzz.targets import Target

SECONDS = 10.0
"""Processor time for one input."""
WAITING = 12
"""An input that waits for something may take so many times `SECONDS`, by the clock."""
MEMORY = 2 << 30
"""Bytes that an input may take above what the process has after its first inputs."""
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_FORBIDDEN = frozenset(
    [
        "os.system",
        "subprocess.Popen",
        "os.exec",
        "os.posix_spawn",
        "os.fork",
        "socket.connect",
        "socket.bind",
        "ctypes.dlopen",
        "webbrowser.open",
        "shutil.rmtree",
        "shutil.move",
        "urllib.Request",
    ]
)
_PATHS = frozenset("os.remove os.rename os.rmdir os.mkdir os.link os.symlink os.truncate os.chmod".split())  # noqa: SIM905


MEMORY_DISK = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Where inputs are written, where there is such a place: most of the time would be that of the disk."""


class Hang(BaseException):
    """An input took longer than `SECONDS`."""


class Escape(BaseException):
    """An input made the program write, or read the canary, outside of its folder, or start something."""


@dataclass
class Watch:
    """Where files may be written while an input is read; None: no input is being read."""

    folder: str | None = None
    installed: bool = field(default=False)

    def install(self) -> None:
        """Watch all events of this process from now on."""
        if not self.installed:
            sys.addaudithook(self._event)
            self.installed = True

    def _event(self, event: str, arguments: tuple[Any, ...]) -> None:
        folder = self.folder
        if folder is None:
            return
        if event in _FORBIDDEN:
            self.folder = None
            raise Escape(f"{event} {arguments!r:.200}")
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, int) or not isinstance(flags, int):
                return
            name = os.fsdecode(path)
            if name in ("/dev/null", "/dev/urandom"):
                return
            place = os.path.realpath(name)
            inside = place == folder or place.startswith(folder + os.sep)
            if (flags & _WRITING and not inside) or place.endswith("/outside.png"):
                self.folder = None
                raise Escape(f"opens {name!r:.200}")
        elif event in _PATHS and isinstance(arguments[0], (str, bytes)):
            place = os.path.realpath(os.fsdecode(arguments[0]))
            if not place.startswith(folder + os.sep):
                self.folder = None
                raise Escape(f"{event} {arguments!r:.200}")


WATCH = Watch()


@dataclass(frozen=True)
class Finding:
    """An input that is neither read nor refused with a clear error."""

    kind: str
    """The exception and the line of resim that it came from; equal kinds are counted once."""
    text: str


def _alarm(number: int, frame: FrameType | None) -> None:
    raise Hang(f"more than {SECONDS:g} s")


def _start_timers() -> None:
    """A busy machine makes no hang: time is that of the processor, and that of the clock only for what waits."""
    for kind, timer, seconds in (
        (signal.SIGPROF, signal.ITIMER_PROF, SECONDS), (signal.SIGALRM, signal.ITIMER_REAL, WAITING * SECONDS),
    ):  # fmt: skip
        signal.signal(kind, _alarm)
        signal.setitimer(timer, seconds)


def _stop_timers() -> None:
    for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
        signal.setitimer(timer, 0)


def processor_seconds(process: int) -> float:
    """The processor time that a process has taken, or the clock where that is not known."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return time.monotonic()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def limit_memory() -> None:
    """Let this process take `MEMORY` more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, resource.RLIM_INFINITY))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def try_input(target: Target, data: bytes, folder: Path) -> Finding | None:
    """Run one input; None: it was read, or refused with a clear error.

    Args:
        target: what reads it.
        data: the input.
        folder: the only folder in which files may be written; it holds what `target.prepare` made.
    """
    _start_timers()
    tempfile.tempdir = str(folder)
    WATCH.folder = os.path.realpath(folder)
    try:
        with _quiet():
            target.run(data, folder)
    except target.refusals as error:
        _stop_timers()
        WATCH.folder = None
        text = str(error)
        if isinstance(error, UserError) and ("Traceback" in text or "weights_only" in text):
            return Finding("message", text[:5000])
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        _stop_timers()
        WATCH.folder = None
        if isinstance(error, SystemExit) and error.code in (0, None):
            return None
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if f"{os.sep}resim{os.sep}" in frame.filename] or frames
        place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
        lines = traceback.format_exception(type(error), error, error.__traceback__)
        return Finding(f"{type(error).__name__} at {place}", "".join(lines)[-6000:])
    finally:
        _stop_timers()
        WATCH.folder = tempfile.tempdir = None
    return None


def save_finding(finding: Finding, target: str, data: bytes, label: str, folder: Path) -> Path:
    """Write an input and its traceback; returns the path of the input, for `--replay`."""
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(data).hexdigest()[:10]
    path = folder / f"{target}-{digest}.input"
    path.write_bytes(data)
    path.with_suffix(".txt").write_text(
        f"target {target}, {label}\n{finding.kind}\nreplay: python -m tests.fuzz {target} --replay {path}\n\n"
        f"{finding.text}",
        encoding="utf-8",
        errors="backslashreplace",
    )
    return path
