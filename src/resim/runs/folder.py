"""A run's folder: what it contains, and whether a run may start or continue there.

config.json         recipe, run, data, versions, git state, command
resumed.jsonl       versions, git state and command of every --resume
metrics.jsonl       one line for each step
probes.jsonl        one line for each reading of the probes
bad_files.txt       files that could not be decoded, with the reason
bad_images.json     of a fine-tuning: the annotations of images that could not be decoded
nonfinite/          batches whose loss was not finite
checkpoints/        last.pt, and epoch_0020.pt, epoch_0040.pt, ...
pictures/           view pairs with their windows, one file for each epoch
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
"""Files of lines that a new run would overwrite."""


def default_folder(recipe: AnyRecipe) -> Path:
    """runs/RECIPE-DATE-TIME, in the working folder."""
    return Path("runs") / f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"


def should_resume(out: Path | None, resume: bool | str) -> bool:
    """Whether a run with this `resume` continues: "auto" continues where `out` contains a run, and starts elsewhere.

    Raises:
        UserError: "auto" without a folder, or with one that contains parts of a run and no config.json.
    """
    if resume != "auto":
        return bool(resume)
    if out is None:
        raise UserError("--resume auto needs --out: the folder of the run to start or to continue")
    if (out / "config.json").exists():
        return True
    parts = [*(out / "checkpoints").glob("*.pt"), *(out / name for name in _LINES if (out / name).exists())]
    if parts:
        raise UserError(
            f"--resume auto: {out} contains {parts[0].relative_to(out)} but no config.json, so the run is incomplete "
            "and is not overwritten: restore config.json, or name another --out"
        )
    return False


def check_folder(out: Path, *, resume: bool = False) -> None:
    """Check that `out` is a folder or does not exist, and that it contains a run if one is to be resumed.

    Raises:
        UserError: it is a file, or contains no run.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file, a folder is needed")
    if resume and not (out / "config.json").exists():
        raise UserError(f"--resume: {out} contains no run (no config.json); leave --resume out to start one there")


def open_run(out: Path, recipe: AnyRecipe, *, resume: bool) -> dict[str, Any] | None:
    """Check that the run may start in `out`, or load the checkpoint from which it continues.

    Returns:
        The last checkpoint, or None where the run starts from the beginning.

    Raises:
        UserError: `out` contains a run and `resume` is not set, contains none and it is, or contains another recipe.
    """
    config, last = out / "config.json", out / "checkpoints" / "last.pt"
    if not resume:
        if config.exists() or any(last.parent.glob("*.pt")):
            raise UserError(f"--out {out}: already contains a run: continue it with --resume, or name another folder")
        for name in _LINES:
            if (out / name).exists():
                raise UserError(f"--out {out}: contains a {name} that a run would overwrite: name another folder")
        return None
    check_folder(out, resume=True)
    changed = differences(read_recipe(config, type(recipe)), recipe)
    if changed:
        raise UserError(f"--resume with another recipe than the run's: {', '.join(changed)}{_remedy(out, changed)}")
    for left_over in last.parent.glob(".*.tmp"):  # a run that is killed while it writes one cannot remove it
        left_over.unlink(missing_ok=True)
    if not last.exists():
        kept = sorted(last.parent.glob("epoch_*.pt"))
        if kept:  # a run that starts from the beginning would replace it
            raise UserError(f"{last}: is missing, though {kept[-1].name} is there: copy that to last.pt to continue")
        return None  # stopped before its first checkpoint
    state = load_checkpoint(last)
    changed = differences(type(recipe).from_json(state["recipe"]), recipe)
    if changed:
        raise UserError(f"{last}: is of another recipe: {', '.join(changed)}")
    return state


def starting_point(out: Path, start_from: str | None, start_epoch: int) -> tuple[str | None, int]:
    """The weights and the epoch with which the run in `out` started.

    Args:
        out: the run's folder.
        start_from: weights that the command names; None: it names none.
        start_epoch: epoch that the command names; 0: it names none.

    Raises:
        UserError: the command names others.
    """
    settings = json.loads((out / "config.json").read_text(encoding="utf-8")).get("run", {})
    weights, epoch = settings.get("start_from"), settings.get("start_epoch", 0)
    if start_from is not None and os.path.normpath(start_from) != os.path.normpath(weights or "random"):
        raise UserError(
            f"--start-from {start_from}: the run in {out} started from {weights or 'random'}: leave it out to "
            "continue, or name another --out"
        )
    if start_epoch not in (0, epoch):
        raise UserError(
            f"--start-epoch {start_epoch}: the run in {out} started at epoch {epoch}: leave it out to continue"
        )
    return weights, epoch


def _remedy(out: Path, changed: list[str]) -> str:
    """How to continue, where the run in `out` is resumed with other settings."""
    longer = next((change.split() for change in changed if change.startswith("--epochs ")), None)
    if longer and int(longer[3]) > int(longer[1]):
        options = f"--start-from {out} --start-epoch {longer[1]} --epochs {longer[3]}"
        return f"; the schedule depends on the epochs: to train longer start a run with {options} and another --out"
    return f"; leave these options out to continue in {out}, or name another --out"


@contextlib.contextmanager
def lock_folder(out: Path, processes: Processes) -> Iterator[None]:
    """While inside, no other run can use the folder.

    Raises:
        UserError: another run uses it, or it cannot be created.
    """
    if not processes.first:
        yield
        return
    path = out / ".lock"
    created = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written to ({error.strerror})") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--out {out}: another run uses it: wait for its end, or name another folder") from None
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # a run that could not start leaves nothing
                for folder in created:
                    folder.rmdir()


def record_resume(out: Path, step: int) -> None:
    """Add a line to resumed.jsonl: the step, and the versions, source and command with which the run continued."""
    with (out / "resumed.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step} | describe_run()) + "\n")


def write_config(out: Path, recipe: AnyRecipe, run: Any, data: dict[str, Any], **extra: Any) -> None:
    """Write config.json atomically.

    Args:
        out: the run's folder.
        recipe: the run's recipe.
        run: the dataclass of the run's settings.
        data: description of the images.
        extra: further entries.
    """
    settings = {name: value for name, value in dataclasses.asdict(run).items() if name != "resume"}
    content = {"recipe": recipe.to_json(), "run": settings | {"out": str(out)}, "data": data} | extra | describe_run()
    text = json.dumps(content, indent=2, default=str) + "\n"
    write_atomically(out / "config.json", lambda file: file.write(text.encode()))


def save_state(out: Path, state: dict[str, Any], *, keep_as: str | None = None) -> None:
    """Write checkpoints/last.pt, and a copy under the name `keep_as` if there is one."""
    folder = out / "checkpoints"
    if keep_as is not None:  # first: a run that is killed here resumes before this epoch's end and keeps it again
        save_checkpoint(folder / keep_as, state)
    save_checkpoint(folder / "last.pt", state)
