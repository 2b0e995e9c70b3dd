"""Signals that stop a command: a training ends after its step and is saved, any other command ends in one line."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)  # not all systems have all of them
)
"""Signals that end a training after its current step, with a checkpoint. Slurm sends what `--signal` names."""

_caught: list[list[int]] = []  # of the context of `catch_termination` that is entered, if one is


class Terminated(KeyboardInterrupt):
    """One of `STOP_SIGNALS` other than SIGINT, outside a training: it ends the command as Ctrl+C does.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal_name = signal.Signals(number).name
        """Such as SIGTERM."""


@contextmanager
def catch_termination() -> Iterator[list[int]]:
    """Record `STOP_SIGNALS` in the returned list instead of ending the process; a second SIGINT interrupts it.

    Under torchrun a third one does: the terminal's Ctrl+C reaches every process, and torchrun sends it once more.
    SIGHUP, SIGUSR1 and SIGUSR2 stay ignored where they are ignored, as `nohup` sets SIGHUP. Inside another such
    context, the list is that of the outer one: a signal ends all that the outer one encloses.
    """
    if _caught:
        yield _caught[-1]
        return
    received: list[int] = []
    most = 2 if "TORCHELASTIC_RUN_ID" in os.environ else 1

    def record(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and received.count(signal.SIGINT) >= most:
            raise KeyboardInterrupt
        received.append(number)

    with _handled(record, (*_not_ignored(), signal.SIGINT)) as is_handled:
        if is_handled:
            _caught.append(received)
        try:
            yield received
        finally:
            if is_handled:
                _caught.pop()


@contextmanager
def end_on_signals() -> Iterator[None]:
    """While inside, `STOP_SIGNALS` other than SIGINT raise `Terminated`; a second one ends the process at once."""

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Terminated(number)

    with _handled(end, _not_ignored()):
        yield


@contextmanager
def interrupt_at_once() -> Iterator[None]:
    """While inside, the first SIGINT raises KeyboardInterrupt: for long work of which nothing can be saved."""
    with _handled(signal.default_int_handler, (signal.SIGINT,)):
        yield


@contextmanager
def end_at_once() -> Iterator[None]:
    """While inside, `STOP_SIGNALS` end the process by themselves: for waits that return to no handler of Python."""
    with _handled(signal.SIG_DFL, (*_not_ignored(), signal.SIGINT)):
        yield


def _not_ignored() -> tuple[int, ...]:
    """The signals but SIGINT, without those that are ignored; SIGTERM is never left out."""
    others = [number for number in STOP_SIGNALS if number != signal.SIGINT]
    return tuple(n for n in others if n == signal.SIGTERM or signal.getsignal(n) != signal.SIG_IGN)


@contextmanager
def _handled(
    handler: Callable[[int, FrameType | None], object] | signal.Handlers, numbers: tuple[int, ...]
) -> Iterator[bool]:
    """While inside, signals have this handler; False where none can be set, outside the main thread."""
    try:
        previous = {number: signal.signal(number, handler) for number in numbers}
    except ValueError:
        previous = {}
    try:
        yield bool(previous)
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
