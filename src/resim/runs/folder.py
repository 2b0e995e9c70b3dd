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

from resim.distributed.processes import Processes
from resim.errors import UserError
from resim.runs.checkpoints import load_checkpoint, save_checkpoint, write_atomically
from resim.runs.config import AnyRecipe, differences, read_recipe
from resim.runs.provenance import describe_run

_LINES = ("metrics.jsonl", "scores.jsonl")
"""Files of lines that a run would write over."""


def default_folder(recipe: AnyRecipe) -> Path:
    """runs/RECIPE-DATE-TIME, below the working folder."""
    return Path("runs") / f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"


def goes_on(out: Path | None, resume: bool | str) -> bool:
    """Whether a run with this `resume` goes on: "auto" goes on where `out` holds a run, and begins elsewhere.

    Raises:
        UserError: "auto" without a folder, or with one that holds parts of a run and no config.json.
    """
    if resume != "auto":
        return bool(resume)
    if out is None:
        raise UserError("--resume auto needs --out: the folder of the run to begin or to continue")
    if (out / "config.json").exists():
        return True
    parts = [*(out / "checkpoints").glob("*.pt"), *(out / name for name in _LINES if (out / name).exists())]
    if parts:
        raise UserError(
            f"--resume auto: {out} holds {parts[0].relative_to(out)} but no config.json, so it is no whole run, and is "
            "not overwritten: put config.json back, or name another --out"
        )
    return False


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
        if config.exists() or any(last.parent.glob("*.pt")):
            raise UserError(f"--out {out}: holds a run already: continue it with --resume, or name another folder")
        for name in _LINES:
            if (out / name).exists():
                raise UserError(f"--out {out}: holds a {name} that a run would overwrite: name another folder")
        return None
    check_folder(out, resume=True)
    changed = differences(read_recipe(config, type(recipe)), recipe)
    if changed:
        raise UserError(f"--resume with another recipe than the run's: {', '.join(changed)}{_remedy(out, changed)}")
    for left_over in last.parent.glob(".*.tmp"):  # a run that is killed while it writes one cannot remove it
        left_over.unlink(missing_ok=True)
    if not last.exists():
        kept = sorted(last.parent.glob("epoch_*.pt"))
        if kept:  # it would be replaced by a run that begins again
            raise UserError(f"{last}: is not there, though {kept[-1].name} is: copy that to last.pt to go on from it")
        return None  # stopped before its first checkpoint
    state = load_checkpoint(last)
    changed = differences(type(recipe).from_json(state["recipe"]), recipe)
    if changed:
        raise UserError(f"{last}: is of another recipe: {', '.join(changed)}")
    return state


def begun_with(out: Path, start_from: str | None, start_epoch: int) -> tuple[str | None, int]:
    """The weights and the epoch with which the run in `out` began.

    Args:
        out: the run's folder.
        start_from: what is named now; None: nothing.
        start_epoch: what is said now; 0: nothing.

    Raises:
        UserError: something else is named now.
    """
    settings = json.loads((out / "config.json").read_text(encoding="utf-8")).get("run", {})
    before, epoch = settings.get("start_from"), settings.get("start_epoch", 0)
    if start_from is not None and os.path.normpath(start_from) != os.path.normpath(before or "random"):
        raise UserError(
            f"--start-from {start_from}: the run in {out} began with {before or 'random'}: leave it out to go on, or "
            "name another --out"
        )
    if start_epoch not in (0, epoch):
        raise UserError(f"--start-epoch {start_epoch}: the run in {out} began at {epoch}: leave it out to go on")
    return before, epoch


def _remedy(out: Path, changed: list[str]) -> str:
    """How to go on, where a run in `out` is called with other settings."""
    longer = next((change.split() for change in changed if change.startswith("--epochs ")), None)
    if longer and int(longer[3]) > int(longer[1]):
        more = f"--start-from {out} --start-epoch {longer[1]} --epochs {longer[3]}"
        return f"; the schedule depends on the epochs: to train longer begin a run with {more} and another --out"
    return f"; leave these options out to go on in {out}, or name another --out"


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
