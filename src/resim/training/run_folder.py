"""A run's folder: what it holds, and whether a run may start or go on there.

config.json         recipe, run, data, versions, git state, command
resumed.jsonl       versions, git state and command of every --resume
metrics.jsonl       one line a step
probes.jsonl        one line a reading of the probes
bad_files.txt       files that could not be decoded, with the reason
bad_images.json     of a fine-tuning: the annotations of such images
checkpoints/        last.pt, and epoch_0020.pt, epoch_0040.pt, ...
pictures/           view pairs with their windows, an epoch
tensorboard/
curves.png          at the end
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resim.errors import UserError
from resim.training.checkpoints import load_checkpoint, save_checkpoint, write_atomically
from resim.training.config import AnyRecipe, differences, read_recipe
from resim.training.processes import Processes
from resim.training.provenance import describe_run


def default_folder(recipe: AnyRecipe) -> Path:
    """runs/RECIPE-DATE-TIME, below the working folder."""
    return Path("runs") / f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"


def check_folder(out: Path, *, resume: bool = False) -> None:
    """Raise a UserError if `out` is there and is no folder, or if a run is to be resumed and there is none."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file, a folder is needed")
    if resume and not (out / "config.json").exists():
        raise UserError(f"--resume: {out} holds no run (no config.json); leave --resume out to start one there")


def open_run(out: Path, recipe: AnyRecipe, *, resume: bool) -> dict[str, Any] | None:
    """Check that the run may start in `out`, or load the checkpoint from which it goes on there.

    Returns:
        The last checkpoint, or None where the run starts from the beginning.

    Raises:
        UserError: `out` holds a run and `resume` is not set, holds none and it is, or holds another recipe.
    """
    config, last = out / "config.json", out / "checkpoints" / "last.pt"
    if not resume:
        if config.exists() or last.exists():
            raise UserError(f"--out {out}: holds a run already: continue it with --resume, or name another folder")
        for name in ("metrics.jsonl", "scores.jsonl"):
            if (out / name).exists():
                raise UserError(f"--out {out}: holds a {name} that a run would overwrite: name another folder")
        return None
    check_folder(out, resume=True)
    changed = differences(read_recipe(config, type(recipe)), recipe)
    if changed:
        raise UserError(f"--resume with another recipe than the run's: {', '.join(changed)}")
    for left_over in last.parent.glob(".*.tmp"):  # a run that is killed while it writes one cannot remove it
        left_over.unlink(missing_ok=True)
    if not last.exists():
        return None  # stopped before its first checkpoint
    state = load_checkpoint(last)
    changed = differences(type(recipe).from_json(state["recipe"]), recipe)
    if changed:
        raise UserError(f"{last}: is of another recipe: {', '.join(changed)}")
    return state


@contextlib.contextmanager
def hold(out: Path, processes: Processes) -> Iterator[None]:
    """While inside, no other run can use the folder.

    Raises:
        UserError: another run is in it, or it cannot be made.
    """
    if not processes.first:
        yield
        return
    path = out / ".lock"
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written to ({error.strerror})") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--out {out}: another run is at work in it") from None
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # a run that could not start leaves nothing
                for folder in made:
                    folder.rmdir()


def note_resume(out: Path, step: int) -> None:
    """Add a line to resumed.jsonl: from which step, and with which versions, source and command the run went on."""
    with (out / "resumed.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step} | describe_run()) + "\n")


def write_config(out: Path, recipe: AnyRecipe, run: Any, data: dict[str, Any], **more: Any) -> None:
    """Write config.json, atomically; `run` is the dataclass of the run's settings."""
    settings = {name: value for name, value in dataclasses.asdict(run).items() if name != "resume"}
    content = {"recipe": recipe.to_json(), "run": settings | {"out": str(out)}, "data": data} | more | describe_run()
    text = json.dumps(content, indent=2, default=str) + "\n"
    write_atomically(out / "config.json", lambda file: file.write(text.encode()))


def save(out: Path, state: dict[str, Any], *, keep_as: str | None = None) -> None:
    """Write checkpoints/last.pt, and keep it under another name too where one is given."""
    folder = out / "checkpoints"
    if keep_as is not None:  # first: a run that is killed here resumes before this epoch's end and keeps it again
        save_checkpoint(folder / keep_as, state)
    save_checkpoint(folder / "last.pt", state)


class BadFiles:
    """Files that cannot be decoded: counted, listed in bad_files.txt, and too many of them stop the run."""

    def __init__(self, out: Path, processes: Processes, max_share: float) -> None:
        self.out, self.processes, self.max_share = out, processes, max_share
        self.found = _read_list(out / "bad_files.txt") if processes.first else {}
        self._listed = len(self.found)
        self._read = 0
        self._failed = 0

    def seen(self, images: int, bad: dict[str, str]) -> None:
        """Count a batch: `images` were decoded and `bad` (path: reason) were not.

        Raises:
            UserError: more than the stated share of at least 50 files read could not be decoded.
        """
        self._read += images + len(bad)
        self._failed += len(bad)
        self.found |= bad
        if self._read >= 50 and self._failed > self.max_share * self._read:
            self._list(self.found)
            path, reason = next(iter(self.found.items()))
            raise UserError(
                f"{self._failed} of {self._read} files read cannot be decoded, more than --max-bad-share "
                f"{self.max_share:g}: see {self.out / 'bad_files.txt'}, for example {path} ({reason})"
            )

    def add(self, bad: dict[str, str]) -> None:
        """List files (path: reason) that are the same on every process and no part of the share."""
        self.found |= bad
        if self.processes.first:
            self._list(self.found)

    def write(self) -> int:
        """Bring bad_files.txt up to date, with all the processes' files; how many there are. All must call it."""
        together: dict[str, str] = {}
        for found in self.processes.gather_objects(self.found):
            together |= found
        self.found = together
        if self.processes.first:
            self._list(together)
        return len(together)

    def _list(self, files: dict[str, str]) -> None:
        if len(files) > self._listed:
            text = "".join(f"{path}\t{reason}\n" for path, reason in sorted(files.items()))
            write_atomically(self.out / "bad_files.txt", lambda file: file.write(os.fsencode(text)))
            self._listed = len(files)


def _read_list(path: Path) -> dict[str, str]:
    """What an earlier invocation of the run listed."""
    lines = os.fsdecode(path.read_bytes()).splitlines() if path.exists() else []
    return {name: reason for name, _, reason in (line.partition("\t") for line in lines)}
