"""The checkpoint from which a run continues: the newest whole one, and what is said where that is not last.pt."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resim.counts import counted
from resim.distributed.processes import Processes
from resim.errors import UserError
from resim.runs.archive import DamagedError
from resim.runs.checkpoints import load_checkpoint, write_atomically
from resim.runs.config import AnyRecipe, differences
from resim.runs.lines import read_records

LAST, PREVIOUS = "last.pt", "previous.pt"
_EPOCH = re.compile(r"epoch_(\d+)\.pt")


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """What a run continues from."""

    state: dict[str, Any] | None
    """A checkpoint; None: the run starts from the beginning."""
    file: Path | None
    """The checkpoint's file."""
    damaged: tuple[Path, ...]
    """Newer checkpoints that are damaged."""
    lines: tuple[str, ...]
    """What is missing or damaged, and what the run goes back to, to print."""


def has_checkpoint(out: Path) -> bool:
    """Whether there is a file of a checkpoint in a run's folder, whole or not."""
    return any((out / "checkpoints").glob("*.pt"))


def read_resumed(
    out: Path, recipe: AnyRecipe, processes: Processes, *, start: int, first_save: int, end: int
) -> Resumed:
    """Read the newest whole checkpoint of a run. All processes must call it.

    `last.pt` is the newest; where it is damaged or missing, `previous.pt` or the last whole `epoch_*.pt`, whichever has
    more steps.

    Args:
        out: the run's folder.
        recipe: of the run.
        processes: all of which read the checkpoint.
        start: the run's first step.
        first_save: steps after which the run has certainly written a checkpoint.
        end: steps in all.

    Raises:
        UserError: no checkpoint is whole, all have been removed, the newest is of another recipe, or the processes read
            different ones.
    """
    resumed = _read_newest(out, recipe, start=start, first_save=first_save, end=end)
    choice = (resumed.file.name, resumed.state["step"]) if resumed.file and resumed.state else ("none", start)
    choices = processes.gather_objects(choice)
    if any(other != choice for other in choices):
        each = ", ".join(f"{name} (step {step})" for name, step in choices)
        raise UserError(
            f"--resume: the processes read different checkpoints of {out}: {each}: check that all machines have the "
            "same folder, and its disk and network"
        )
    return resumed


def restore_last(resumed: Resumed) -> None:
    """Rename damaged checkpoints to NAME.damaged, and make last.pt a copy of the checkpoint that was read instead.

    Raises:
        UserError: the folder cannot be written to.
    """
    for path in resumed.damaged:
        try:
            path.replace(path.with_name(f"{path.name}.damaged"))
        except OSError as error:
            raise UserError(f"{path}: cannot be renamed ({error.strerror})") from None
    if resumed.file is not None and resumed.file.name != LAST:
        with resumed.file.open("rb") as source:
            write_atomically(resumed.file.with_name(LAST), lambda file: shutil.copyfileobj(source, file))


def _read_newest(out: Path, recipe: AnyRecipe, *, start: int, first_save: int, end: int) -> Resumed:
    folder = out / "checkpoints"
    faults: dict[Path, str] = {}
    state, file = None, None
    for group in _candidates(folder):  # last.pt before all others; of each further group the first whole one
        for path in group:
            try:
                content = load_checkpoint(path)
            except DamagedError as error:
                faults[path] = _fault(path, error)
                continue
            _check_state(path, content, recipe)
            if state is None or content["step"] > state["step"]:
                state, file = content, path
            break
        if file is not None and file.name == LAST:
            break
    if state is None or file is None:
        if faults:
            listed = "; ".join(f"{path.name} ({reason})" for path, reason in faults.items())
            raise UserError(
                f"--resume: no checkpoint in {folder} is whole: {listed}: restore one of them, or name another --out"
            )
        return _start_again(out, start=start, first_save=first_save)
    lines = [f"checkpoints/{path.name} is damaged ({reason})" for path, reason in faults.items()]
    if not (folder / LAST).exists():
        lines.append(f"checkpoints/{LAST} is missing")
    if lines:
        lines[-1] += f"; resumes from checkpoints/{file.name}, step {state['step']} of {end}"
    return Resumed(state=state, file=file, damaged=tuple(faults), lines=tuple(lines))


def _fault(path: Path, error: DamagedError) -> str:
    """What is wrong with a checkpoint, without its name and without a remedy that a run does not need."""
    text = str(error).removeprefix(f"{path}: ").removeprefix("damaged: ").partition("; copy or download")[0]
    inner = re.fullmatch(r"damaged, or no checkpoint \((.*)\)", text)
    return inner[1] if inner else text


def _candidates(folder: Path) -> Iterator[list[Path]]:
    """Files of checkpoints in groups, the newest of each group first."""
    for name in (LAST, PREVIOUS):
        if (folder / name).exists():
            yield [folder / name]
    numbered = [(int(match[1]), path) for path in folder.glob("*.pt") if (match := _EPOCH.fullmatch(path.name))]
    yield [path for _, path in sorted(numbered, reverse=True)]


def _check_state(path: Path, state: dict[str, Any], recipe: AnyRecipe) -> None:
    """Check that a checkpoint is one of the run."""
    try:
        before, step = type(recipe).from_json(state["recipe"]), state["step"]
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is no checkpoint of a run of this kind ({error})") from None
    changed = differences(before, recipe)
    if changed:
        raise UserError(f"{path}: is of another recipe: {', '.join(changed)}")
    if not isinstance(step, int) or step < 0:
        raise UserError(f"{path}: has no number of steps, but {step!r}")


def _start_again(out: Path, *, start: int, first_save: int) -> Resumed:
    """Start a run without a checkpoint from the beginning, if it was stopped before it had written one."""
    metrics = out / "metrics.jsonl"
    try:
        last = max((line["step"] for line in read_records(metrics)), default=-1)
    except UserError:  # a damaged line, which is repaired later
        last = -1
    if last >= first_save:
        raise UserError(
            f"--resume: {out / 'checkpoints'} has no checkpoint, though {metrics} has steps up to {last} and one was "
            f"written after step {first_save} at the latest: restore {LAST}, or name another --out"
        )
    written = f"; {counted(last + 1 - start, 'step')} in metrics.jsonl will be repeated" if last >= start else ""
    line = f"{out / 'checkpoints'} has no checkpoint yet; starts from the beginning, step {start}{written}"
    return Resumed(state=None, file=None, damaged=(), lines=(line,))
