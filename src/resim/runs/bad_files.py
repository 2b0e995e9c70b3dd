"""Files that cannot be decoded: counted, listed in bad_files.txt, and too many of them stop the run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from resim.distributed.processes import Processes
from resim.errors import UserError
from resim.runs.checkpoints import write_atomically
from resim.views.loader import UnreadableError

_LEAST_READ = 50  # files, before a share of them is judged


class BadFiles:
    """The files of a run that cannot be decoded.

    Args:
        out: the run's folder.
        processes: all of which read files.
        max_share: largest share of the files read that may fail.
    """

    def __init__(self, out: Path, processes: Processes, max_share: float) -> None:
        self.out, self.processes, self.max_share = out, processes, max_share
        self.reasons = _read_list(out / "bad_files.txt") if processes.first else {}
        """By path, why the file cannot be decoded; what an earlier invocation of the run listed is included."""
        self._num_listed = len(self.reasons)
        self._num_read = 0
        self._num_failed = 0

    def count(self, images: int, reasons: dict[str, str]) -> None:
        """Count a batch: `images` were decoded, and the files of `reasons` (by path) were not.

        Raises:
            UserError: more than `max_share` of at least 50 files read cannot be decoded.
        """
        self._num_read += images + len(reasons)
        self._num_failed += len(reasons)
        self.reasons |= reasons
        if self._num_read >= _LEAST_READ and self._num_failed > self.max_share * self._num_read:
            self._list(self.reasons)
            path, reason = next(iter(self.reasons.items()))
            raise UserError(
                f"{self._num_failed} of {self._num_read} files read cannot be decoded, more than --max-bad-share "
                f"{self.max_share:g}: see {self.out / 'bad_files.txt'}, for example {path} ({reason})"
            )

    def add(self, reasons: dict[str, str]) -> None:
        """List files (by path, the reason) that are the same on every process and do not count for the share."""
        self.reasons |= reasons
        if self.processes.first:
            self._list(self.reasons)

    def write(self) -> int:
        """Update bad_files.txt with the files of all processes; returns their number. All processes must call it."""
        together: dict[str, str] = {}
        for reasons in self.processes.gather_objects(self.reasons):
            together |= reasons
        self.reasons = together
        if self.processes.first:
            self._list(together)
        return len(together)

    @contextlib.contextmanager
    def listed_on_error(self) -> Iterator[None]:
        """If anything raised inside ends the run, list this process's files first: the others may have ended already.

        The files of an `UnreadableError`, which no batch has, are listed too.
        """
        try:
            yield
        except BaseException as error:
            if isinstance(error, UnreadableError):
                self.reasons |= {file.path: file.reason for file in error.bad}
            with contextlib.suppress(UserError):  # of a full disk, which would hide the error
                listed = _read_list(self.out / "bad_files.txt")
                self._num_listed = len(listed)
                self._list(listed | self.reasons)
            raise

    def _list(self, reasons: dict[str, str]) -> None:
        if len(reasons) > self._num_listed:
            text = "".join(f"{path}\t{reason}\n" for path, reason in sorted(reasons.items()))
            write_atomically(self.out / "bad_files.txt", lambda file: file.write(os.fsencode(text)))
            self._num_listed = len(reasons)


def _read_list(path: Path) -> dict[str, str]:
    """By path, the reasons in a bad_files.txt; empty where there is none."""
    lines = os.fsdecode(path.read_bytes()).splitlines() if path.exists() else []
    return {name: reason for name, _, reason in (line.partition("\t") for line in lines)}
