"""A run's folder: what it contains, and whether a run may start or continue there.

config.json         recipe, run, data, versions, git state, command
resumed.jsonl       checkpoint, versions, git state and command of every --resume
metrics.jsonl       one line for each step
metrics.jsonl.cut   lines that were taken out at a --resume: of steps that it repeats, and damaged ones
probes.jsonl        one line for each reading of the probes
bad_files.txt       files that could not be decoded, with the reason
bad_images.json     of a fine-tuning: the annotations of images that could not be decoded
nonfinite/          batches whose loss was not finite
checkpoints/        last.pt, the one before it as previous.pt, and epoch_0020.pt, epoch_0040.pt, ...
pictures/           view pairs with their windows, one file for each epoch
tensorboard/
curves.png          at the end
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import time
from pathlib import Path
from typing import Any

from resim.errors import UserError
from resim.reading import read_json
from resim.runs.checkpoints import remove_temporary, save_checkpoint, write_atomically
from resim.runs.config import AnyRecipe, differences, read_recipe
from resim.runs.lines import append
from resim.runs.provenance import describe_run
from resim.runs.resume import LAST, PREVIOUS, Resumed, has_checkpoint, restore_last

_LINES = ("metrics.jsonl", "scores.jsonl")
"""Files of lines that a new run would overwrite."""

_TEMPORARY = {
    ".": re.compile(
        r"config\.json|(metrics|probes|scores)\.jsonl(\.cut)?|bad_files\.txt|bad_images\.json|results\.json|curves\.png"
    ),
    "checkpoints": re.compile(r"(last|previous|epoch_\d+)\.pt"),
    "pictures": re.compile(r"(epoch_\d+|detections)\.png"),
}
"""By folder, the files that a run writes under a temporary name first."""


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
    part = _part_of_run(out)
    if part is not None:
        raise UserError(f"--resume auto: {_incomplete(out, part)}")
    return False


def check_folder(out: Path, *, resume: bool = False) -> None:
    """Check that `out` is a folder or does not exist, and that it contains a run if one is to be resumed.

    Raises:
        UserError: it is a file, or contains no run.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file, a folder is needed")
    if not resume or (out / "config.json").exists():
        return
    part = _part_of_run(out)
    if part is not None:
        raise UserError(f"--resume: {_incomplete(out, part)}")
    raise UserError(f"--resume: {out} contains no run (no config.json); leave --resume out to start one there")


def _part_of_run(out: Path) -> Path | None:
    """A file in `out` that a run wrote; None: there is none."""
    parts = [*sorted((out / "checkpoints").glob("*.pt")), *(out / name for name in _LINES if (out / name).exists())]
    return parts[0] if parts else None


def _incomplete(out: Path, part: Path) -> str:
    return (
        f"{out} contains {part.relative_to(out)} but no config.json, so the run is incomplete and is not overwritten: "
        "restore config.json, or name another --out"
    )


def check_run(out: Path, recipe: AnyRecipe, *, resume: bool) -> None:
    """Check that a run of the recipe may start in `out`, or continue there.

    Raises:
        UserError: `out` contains a run and `resume` is not set, contains none and it is, or contains another recipe.
    """
    if not resume:
        if (out / "config.json").exists() or has_checkpoint(out):
            raise UserError(f"--out {out}: already contains a run: continue it with --resume, or name another folder")
        for name in _LINES:
            if (out / name).exists():
                raise UserError(f"--out {out}: contains a {name} that a run would overwrite: name another folder")
        return
    check_folder(out, resume=True)
    changed = differences(read_recipe(out / "config.json", type(recipe)), recipe)
    if changed:
        raise UserError(f"--resume with another recipe than the run's: {', '.join(changed)}{_remedy(out, changed)}")


def starting_point(out: Path, start_from: str | None, start_epoch: int) -> tuple[str | None, int]:
    """The weights and the epoch with which the run in `out` started.

    Args:
        out: the run's folder.
        start_from: weights that the command names; None: it names none.
        start_epoch: epoch that the command names; 0: it names none.

    Raises:
        UserError: the command names others, or config.json cannot be read.
    """
    settings = _stored_settings(out)
    weights, epoch = settings.get("start_from"), settings.get("start_epoch", 0)
    if not isinstance(weights, str | None) or type(epoch) is not int:
        raise UserError(
            f"{out / 'config.json'}: start_from must be a path or null and start_epoch a whole number, not {weights!r} "
            f"and {epoch!r}: restore the file, or name another --out"
        )
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


def stored_setting(out: Path, name: str) -> Any:
    """A setting with which the run in `out` started; None: its config.json has none of this name.

    Raises:
        UserError: config.json cannot be read.
    """
    return _stored_settings(out).get(name)


def _stored_settings(out: Path) -> dict[str, Any]:
    path = out / "config.json"
    try:
        content = read_json(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): restore it, or name another --out") from None
    except ValueError as error:
        raise UserError(f"{path}: is damaged ({error}): restore it, or name another --out") from None
    settings = content.get("run") if isinstance(content, dict) else None
    return settings if isinstance(settings, dict) else {}


def _remedy(out: Path, changed: list[str]) -> str:
    """How to continue, where the run in `out` is resumed with other settings."""
    longer = next((change.split() for change in changed if change.startswith("--epochs ")), None)
    if longer and int(longer[3]) > int(longer[1]):
        options = f"--start-from {out} --start-epoch {longer[1]} --epochs {longer[3]}"
        return f"; the schedule depends on the epochs: to train longer start a run with {options} and another --out"
    return f"; leave these options out to continue in {out}, or name another --out"


def record_resume(out: Path, resumed: Resumed) -> None:
    """Add a line to resumed.jsonl: the step, and the versions, source and command with which the run continued.

    Damaged checkpoints, which the line lists, are renamed to NAME.damaged, and last.pt is restored.
    """
    if resumed.state is None or resumed.file is None:
        return
    entry: dict[str, Any] = {"step": resumed.state["step"], "checkpoint": resumed.file.name}
    entry |= {"damaged": [path.name for path in resumed.damaged]} if resumed.damaged else {}
    _remove_left_over(out)
    append(out / "resumed.jsonl", (json.dumps(entry | describe_run()) + "\n").encode())
    restore_last(resumed)


def write_config(out: Path, recipe: AnyRecipe, run: Any, data: dict[str, Any], **extra: Any) -> None:
    """Write config.json atomically.

    Args:
        out: the run's folder.
        recipe: the run's recipe.
        run: the dataclass of the run's settings.
        data: description of the images.
        extra: further entries.
    """
    _remove_left_over(out)
    settings = {name: value for name, value in dataclasses.asdict(run).items() if name != "resume"}
    content = {"recipe": recipe.to_json(), "run": settings | {"out": str(out)}, "data": data} | extra | describe_run()
    text = json.dumps(content, indent=2, default=str) + "\n"
    write_atomically(out / "config.json", lambda file: file.write(text.encode()))


def _remove_left_over(out: Path) -> None:
    """Remove temporary files of a run that was killed while it wrote them."""
    for folder, names in _TEMPORARY.items():
        remove_temporary(out / folder, names)


def save_state(out: Path, state: dict[str, Any], *, keep_as: str | None = None) -> None:
    """Write checkpoints/last.pt, and a copy under the name `keep_as` if there is one.

    The last.pt before it stays as previous.pt.
    """
    folder = out / "checkpoints"
    if keep_as is not None:  # first: a run that is killed here resumes before this epoch's end and keeps it again
        save_checkpoint(folder / keep_as, state)
    save_checkpoint(folder / LAST, state, keep_old_as=PREVIOUS)
