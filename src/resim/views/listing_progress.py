"""How far a long listing is, in lines on the standard error, so that nobody takes it for a program that hangs."""

from __future__ import annotations

import os
import sys
import time

_LONGEST_PAUSE = 60.0  # seconds


class ListingProgress:
    """Says how many images are listed: after 1 s, 2 s, 4 s and so on, at least every minute, on the first process."""

    def __init__(self) -> None:
        self.images = 0
        self._start = time.monotonic()
        self._due = 1.0 if os.environ.get("RANK", "0") == "0" else float("inf")  # seconds after the start

    def count(self) -> None:
        """Count an image."""
        self.images += 1
        self.report()

    def report(self) -> None:
        """Print a line if one is due."""
        seconds = time.monotonic() - self._start
        if seconds >= self._due:
            self._due = seconds + min(seconds, _LONGEST_PAUSE)
            print(f"listing images: {self.images:,} after {seconds:.0f} s", file=sys.stderr, flush=True)
