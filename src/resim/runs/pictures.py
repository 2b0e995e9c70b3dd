"""Pictures that a training writes in addition to its results: one that cannot be written does not end the training."""

from __future__ import annotations

from collections.abc import Callable

from resim.errors import WriteError


class Pictures:
    """Draws and writes pictures of a run; the first that cannot be written is reported, and all are counted.

    Args:
        say: prints a line.
    """

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say = say
        self.num_lost = 0
        """Pictures that could not be written."""

    def write(self, draw: Callable[[], object]) -> bool:
        """Call `draw`, which writes a picture; False if the disk is full or the folder cannot be written to."""
        try:
            draw()
        except WriteError as error:
            self.num_lost += 1
            if self.num_lost == 1:
                self._say(f"{error}: the run goes on without this picture; others are counted at its end")
            return False
        return True
