"""What a pre-training needs before its first step: images, the run's folder, the model and its optimiser."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from resim import acceleration
from resim.distributed.processes import Processes
from resim.errors import UserError
from resim.model.resim import ReSim
from resim.runs import folder as run_folder
from resim.runs.config import Recipe, RunConfig
from resim.runs.log import Reading
from resim.training.advice import advise, fitted_command
from resim.training.precision import choose_precision
from resim.training.starting import Start, read_start, start
from resim.training.step import Stepper, make_stepper
from resim.version import __version__
from resim.views.folder import PathList, find_images

Precision = Literal["float32", "bf16"]
Measure = Callable[[ReSim, int], Reading]
"""A model and the number of steps that it has been trained -> measurements of it."""
MakeProbe = Callable[[Recipe, RunConfig, Precision, Sequence[str], int], Measure]
"""The recipe, the run, its precision, the training images and the steps of an epoch -> what measures the model."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A pre-training that can take its next step."""

    out: Path
    """The run's folder."""
    paths: PathList
    """Images."""
    stepper: Stepper
    measure: Measure | None
    """On the first process, if the run is to be measured on its way."""
    precision: Precision
    workers: int
    """Loader processes."""
    step: int
    """Steps done."""
    epoch_steps: int
    """Steps of an epoch."""
    end: int
    """Steps in all."""
    is_resumed: bool
    begun: Start | None
    """What a new run begins with; None: it is resumed, or begins with random weights."""
    data: dict[str, Any]
    """What is said of the images in config.json and in checkpoints."""
    imported: dict[str, Any]
    """Licence and origin of imported weights, which go with what is made of them; empty: none."""


def prepare(
    recipe: Recipe,
    run: RunConfig,
    sources: str | Path | Sequence[str | Path],
    processes: Processes,
    resources: contextlib.ExitStack,
    *,
    probe: MakeProbe | None,
    command: Sequence[str],
) -> Prepared:
    """Find the images, open or resume the run's folder, build the model.

    Args:
        recipe: as `pretrain`.
        run: likewise.
        sources: likewise.
        processes: that take part; all must call it.
        resources: keeps the folder's lock.
        probe: as `pretrain`.
        command: likewise.

    Raises:
        UserError: as `pretrain`.
    """
    paths = find_images(sources)
    epoch_steps = _steps_per_epoch(recipe, paths, processes, command)
    resume = run_folder.goes_on(run.out, run.resume)
    out = Path(processes.gather_objects(run.out or run_folder.default_folder(recipe))[0])
    run_folder.check_folder(out, resume=resume)
    resources.enter_context(run_folder.hold(out, processes))
    state = run_folder.open_run(out, recipe, resume=resume)
    if resume:
        start_from, start_epoch = run_folder.begun_with(out, run.start_from, run.start_epoch)
        run = dataclasses.replace(run, start_from=start_from, start_epoch=start_epoch)
    begun = None if state else read_start(run, recipe, processes)
    acceleration.choose(kernels=run.kernels, keep_memory=run.keep_memory)
    precision = state["precision"] if state else choose_precision(run.precision, processes.device)
    precision = processes.gather_objects(precision)[0]  # it is a measurement: the first process's counts
    if run.precision not in ("auto", precision):
        raise UserError(f"--resume in {run.precision}: the run is in {precision}; leave --precision out")
    _check_agreement(processes, paths, precision, state)
    listed = [sources] if isinstance(sources, str | Path) else sources
    measure = probe(recipe, run, precision, paths, epoch_steps) if probe is not None and processes.first else None
    data = {"sources": [str(source) for source in listed], "images": len(paths), "hash": paths.fingerprint()}
    origin = (state or (begun.state if begun else {})).get("imported")
    workers = run.workers if run.workers >= 0 else min(processes.cores, 16)
    stepper = make_stepper(
        recipe.model, recipe.optim, processes, precision=precision, groups_at_a_time=run.groups_at_a_time,
        compile_encoders=run.compile,
    )  # fmt: skip
    step = epoch_steps * run.start_epoch
    if state:
        step = state["step"]
        stepper.model.load_state_dict(state["model"])
        stepper.optimizer.load_state_dict(state["optimizer"])
    elif begun:
        start(stepper, begun.state)
    if processes.first and state:
        run_folder.note_resume(out, step)
    elif processes.first:
        resolved = dataclasses.replace(run, out=out, device=processes.device.type, precision=precision, workers=workers)
        begins = {"start": begun.record} if begun else {}
        speed = acceleration.describe()
        run_folder.write_config(out, recipe, resolved, data, processes=processes.count, acceleration=speed, **begins)
    return Prepared(
        out=out, paths=paths, stepper=stepper, measure=measure, precision=precision, workers=workers, step=step,
        epoch_steps=epoch_steps, end=epoch_steps * recipe.optim.epochs, is_resumed=bool(state), begun=begun, data=data,
        imported={"imported": origin} if origin else {},
    )  # fmt: skip


def checkpoint_state(recipe: Recipe, prepared: Prepared, step: int) -> dict[str, Any]:
    """The whole state after `step` steps: what a checkpoint holds."""
    return {
        "resim": __version__,
        "recipe": recipe.to_json(),
        "precision": prepared.precision,
        "data": prepared.data,
        "step": step,
        "epoch": step // prepared.epoch_steps,
        "model": prepared.stepper.model.state_dict(),
        "optimizer": prepared.stepper.optimizer.state_dict(),
    } | prepared.imported


def _steps_per_epoch(recipe: Recipe, paths: PathList, processes: Processes, command: Sequence[str]) -> int:
    images = len(paths)
    batch, group = recipe.optim.batch_size, recipe.model.group_size
    if images < batch:
        fits = images // group * group
        remedy = f"--batch-size {fits}" if fits else f"--batch-size {images} --group-size {images}"
        others = f"; {paths.passed}" if paths.passed else ""
        few = "1 image is" if images == 1 else f"{images} images are"
        reason = f"{few} fewer than one batch of {batch}: set {remedy}, or add images{others}"
        raise UserError(reason + _fitted(recipe, images, fits or images, min(group, images), command))
    if batch % (processes.count * group):
        raise UserError(
            f"a batch of {batch} over {processes.count} processes is no whole number of groups of {group} in each: "
            f"use a number of processes that divides {batch // group}, or a smaller --group-size"
        )
    return images // batch


def _fitted(recipe: Recipe, images: int, batch: int, group: int, command: Sequence[str]) -> str:
    """The whole command for fewer images than a batch, with whatever else does not fit so few."""
    if not command:
        return ""
    try:
        smaller = dataclasses.replace(
            recipe,
            model=dataclasses.replace(recipe.model, group_size=group),
            optim=dataclasses.replace(recipe.optim, batch_size=batch),
        )
    except ValueError:  # a group too small for BatchNorm
        return ""
    options = {"--batch-size": str(batch)} | ({"--group-size": str(group)} if group < recipe.model.group_size else {})
    options |= advise(smaller, images).options
    return f"; this fits: {fitted_command(command, options, out_is_used=False)}"


def _check_agreement(processes: Processes, paths: PathList, precision: str, state: dict[str, Any] | None) -> None:
    """All processes see the same images and settings, and a resumed run sees those it began with."""
    own = (len(paths), paths.fingerprint(), precision)
    everyone = processes.gather_objects(own)
    if any(other != own for other in everyone):
        counts = ", ".join(f"{count} ({name[:6]}, {kind})" for count, name, kind in everyone)
        raise UserError(f"the processes differ in their images or precision: {counts}; give all the same --precision")
    if state and (state["data"]["images"], state["data"]["hash"]) != own[:2]:
        raise UserError(
            f"--resume with other images: the run began with {state['data']['images']} "
            f"({state['data']['hash'][:6]}), now there are {own[0]} ({own[1][:6]}); give it the same folders"
        )
