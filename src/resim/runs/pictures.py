"""Pictures that a training writes in addition to its results: one that cannot be written does not end the training."""

from __future__ import annotations

from collections.abc import Callable

from resim.errors import WriteError


class Pictures:
    """Draws and writes pictures of a run; the first that cannot be written is reported.

    Args:
        say: prints a line.
    """

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say = say
        self._is_reported = False

    def write(self, draw: Callable[[], object]) -> bool:
        """Call `draw`, which writes a picture; False if the disk is full or the folder cannot be written to."""
        try:
            draw()
        except WriteError as error:
            if not self._is_reported:
                self._say(f"{error}: the run goes on without its pictures, and tries each of them once")
            self._is_reported = True
            return False
        return True
