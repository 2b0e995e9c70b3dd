"""How long all of a training takes, told after its first steps, and whether the loader or the step limits it."""

from __future__ import annotations

import time

from resim.counts import counted

_MOST_WAITING = 0.03  # share of the time, as `resim bench` has it


def forecast(*, seconds: float, steps: int, left: int, waiting: float, workers: int, now: float) -> str:
    """One line: how long the rest takes, until when, and what limits.

    Args:
        seconds: that the steps measured took together.
        steps: measured.
        left: steps that are still to be taken.
        waiting: share of that time in which the step waited for images.
        workers: loader processes of each training process.
        now: seconds since the epoch of the clock.
    """
    rest = seconds / steps * left
    until = time.strftime("%a %d %b %Y %H:%M", time.localtime(now + rest))
    share = f"{waiting:.0%} of the time is spent waiting for images"
    if waiting > _MOST_WAITING:
        loaders = counted(workers, "loader process", "loader processes")
        limit = f"the loader limits ({share}; {loaders}): raise --workers, or measure by resim bench"
    else:
        limit = f"the step limits ({share})"
    return f"all of it takes about {long(rest)}, until {until}; {limit}"


def long(seconds: float) -> str:
    """A length of time in its two largest units: 2 d 3 h, 3 h 20 min, 4 min 5 s, 12 s."""
    whole = max(0, round(seconds))
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, seconds = divmod(rest, 60)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
