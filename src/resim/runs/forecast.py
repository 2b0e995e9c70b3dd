"""A forecast after the first steps of a training: how long the rest takes, and what limits, loader or step."""

from __future__ import annotations

import time

from resim.counts import counted

_MOST_WAITING = 0.03  # share of the time, the same as in `resim bench`


def forecast(*, seconds: float, steps: int, left: int, waiting: float, workers: int, now: float) -> str:
    """One line: how long the rest takes, until when, and what limits.

    Args:
        seconds: time that the measured steps took together.
        steps: number of measured steps.
        left: number of steps that are left.
        waiting: share of that time in which the step waited for images.
        workers: loader processes of each training process.
        now: current time, in seconds since the epoch of the clock.
    """
    rest = seconds / steps * left
    until = time.strftime("%a %d %b %Y %H:%M", time.localtime(now + rest))
    share = f"{waiting:.0%} of the time is spent waiting for images"
    if waiting > _MOST_WAITING:
        loaders = counted(workers, "loader process", "loader processes")
        limit = f"the loader limits ({share}; {loaders}): raise --workers, or measure by resim bench"
    else:
        limit = f"the step limits ({share})"
    return f"all of it takes about {in_two_units(rest)}, until {until}; {limit}"


def in_two_units(seconds: float) -> str:
    """A length of time in its two largest units: 2 d 3 h, 3 h 20 min, 4 min 5 s, 12 s."""
    days, rest = divmod(max(0, round(seconds)), 86400)
    hours, rest = divmod(rest, 3600)
    minutes, seconds = divmod(rest, 60)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
