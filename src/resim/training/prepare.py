"""The preparation of a pre-training: images, the run's folder, the model and its optimiser."""

from __future__ import annotations

import contextlib
import dataclasses
import os
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
from resim.runs.lock import WAIT_SECONDS, lock_folder
from resim.runs.log import Reading
from resim.runs.resume import read_resumed
from resim.signals import interrupt_at_once
from resim.training.advice import advise, fitted_command
from resim.training.node_images import check_node_images, count_node_images
from resim.training.precision import choose_precision
from resim.training.starting import Start, load_start, read_start
from resim.training.step import Stepper, make_stepper
from resim.version import __version__
from resim.views.folder import PathList, find_images
from resim.views.limits import default_max_pixels

Precision = Literal["float32", "bf16"]
Measure = Callable[[ReSim, int], Reading]
"""A model and the number of steps done -> a measurement of the model."""
MakeProbe = Callable[[Recipe, RunConfig, Precision, Sequence[str], int], Measure]
"""The recipe, the run, its precision, the training images and the steps of an epoch -> a `Measure`."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A pre-training that is ready for its next step."""

    out: Path
    """The run's folder."""
    paths: PathList
    """The images."""
    stepper: Stepper
    measure: Measure | None
    """Measures the model during the run, on the first process; None: nothing does."""
    precision: Precision
    workers: int
    """Loader processes."""
    max_pixels: int
    """Pixels of an image that are decoded at most."""
    step: int
    """Steps done."""
    epoch_steps: int
    """Steps of an epoch."""
    end: int
    """Steps in all."""
    is_resumed: bool
    """Whether the run continues from a checkpoint."""
    notes: tuple[str, ...]
    """What is missing or damaged in the folder of a run that continues, to print."""
    start: Start | None
    """The weights of a new run; None: it is resumed, or starts from random weights."""
    data: dict[str, Any]
    """Description of the images in config.json and in checkpoints."""
    node_images: dict[str, int]
    """As `count_node_images` returns them, for every checkpoint."""
    imported: dict[str, Any]
    """Licence and origin of imported weights, which every checkpoint of the run repeats; empty: none."""


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
    """Examine the run's folder, find the images, read the checkpoint of a run that continues, build the model.

    Args:
        recipe: as in `pretrain`.
        run: as in `pretrain`.
        sources: as in `pretrain`.
        processes: all processes of the training; all must call this function.
        resources: releases the lock of the folder at the end.
        probe: as in `pretrain`.
        command: as in `pretrain`.

    Raises:
        UserError: as in `pretrain`.
    """
    resume = run_folder.should_resume(run.out, run.resume)
    out = Path(processes.gather_objects(run.out or run_folder.default_folder(recipe))[0])
    run_folder.check_folder(out, resume=resume)  # before the images, of which there may be millions
    resources.enter_context(lock_folder(out, processes, wait=WAIT_SECONDS if run.resume else 0.0))
    # again: a run that had the lock may have begun and ended meanwhile
    resume = processes.gather_objects(run_folder.should_resume(run.out, run.resume))[0]
    run_folder.check_run(out, recipe, resume=resume)
    if resume:
        start_from, start_epoch = run_folder.starting_point(out, run.start_from, run.start_epoch)
        run = dataclasses.replace(run, start_from=start_from, start_epoch=start_epoch)
    with interrupt_at_once():  # millions of files take minutes, of which nothing is saved
        paths = find_images(sources)
    epoch_steps = _steps_per_epoch(recipe, paths, processes, command)
    end, step = epoch_steps * recipe.optim.epochs, epoch_steps * run.start_epoch
    resumed = None
    if resume:  # a checkpoint is written at the end of an epoch, or earlier
        resumed = read_resumed(out, recipe, processes, start=step, first_save=step + epoch_steps, end=end)
    state = resumed.state if resumed else None
    start = None if state else read_start(run, recipe, processes)
    acceleration.choose(kernels=run.kernels, keep_memory=run.keep_memory)
    precision = state["precision"] if state else choose_precision(run.precision, processes.device)
    precision = processes.gather_objects(precision)[0]  # it depends on a timing: that of the first process
    if run.precision not in ("auto", precision):
        raise UserError(f"--precision {run.precision}: the run to resume is in {precision}: leave --precision out")
    _check_agreement(processes, paths, precision, state)
    node_images = count_node_images(recipe, processes)
    check_node_images(state, node_images)
    listed = [sources] if isinstance(sources, str | Path) else sources
    measure = probe(recipe, run, precision, paths, epoch_steps) if probe is not None and processes.first else None
    data = {"sources": [str(source) for source in listed], "images": len(paths), "hash": paths.fingerprint()}
    origin = (state or (start.state if start else {})).get("imported")
    workers = run.workers if run.workers >= 0 else min(processes.cores, 16)
    max_pixels = run.max_pixels or _default_max_pixels(workers, processes)
    stepper = make_stepper(
        recipe.model, recipe.optim, processes, precision=precision, groups_at_a_time=run.groups_at_a_time,
        compile_encoders=run.compile,
    )  # fmt: skip
    if state:
        step = state["step"]
        stepper.model.load_state_dict(state["model"])
        stepper.optimizer.load_state_dict(state["optimizer"])
    elif start:
        load_start(stepper, start.state)
    if processes.first and resumed and state:
        run_folder.record_resume(out, resumed)
    elif processes.first:
        resolved = dataclasses.replace(
            run, out=out, device=processes.device.type, precision=precision, workers=workers,
            max_pixels=max_pixels,
        )  # fmt: skip
        extra = {"processes": processes.count, "acceleration": acceleration.describe()}
        extra |= node_images | ({"start": start.record} if start else {})
        run_folder.write_config(out, recipe, resolved, data, **extra)
    return Prepared(
        out=out, paths=paths, stepper=stepper, measure=measure, precision=precision, workers=workers,
        max_pixels=max_pixels, step=step, epoch_steps=epoch_steps, end=end, is_resumed=bool(state),
        notes=resumed.lines if resumed else (), start=start, data=data,
        imported={"imported": origin} if origin else {}, node_images=node_images,
    )  # fmt: skip


def _default_max_pixels(workers: int, processes: Processes) -> int:
    """The least of all machines, so that all decode alike."""
    readers = max(1, workers) * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(processes.gather_objects(default_max_pixels(readers)))


def checkpoint_state(recipe: Recipe, prepared: Prepared, step: int) -> dict[str, Any]:
    """The content of a checkpoint after `step` steps."""
    return {
        "resim": __version__,
        "recipe": recipe.to_json(),
        "precision": prepared.precision,
        "data": prepared.data,
        "step": step,
        "epoch": step // prepared.epoch_steps,
        "model": prepared.stepper.model.state_dict(),
        "optimizer": prepared.stepper.optimizer.state_dict(),
        **prepared.node_images,
        **prepared.imported,
    }


def _steps_per_epoch(recipe: Recipe, paths: PathList, processes: Processes, command: Sequence[str]) -> int:
    images = len(paths)
    batch, group = recipe.optim.batch_size, recipe.model.group_size
    if images < batch:
        fitting = images // group * group
        remedy = f"--batch-size {fitting}" if fitting else f"--batch-size {images} --group-size {images}"
        passed_over = f"; {paths.passed}" if paths.passed else ""
        available = "1 image is" if images == 1 else f"{images} images are"
        reason = f"{available} fewer than one batch of {batch}: set {remedy}, or add images{passed_over}"
        raise UserError(reason + _fitting_command(recipe, images, fitting or images, min(group, images), command))
    if batch % (processes.count * group):
        raise UserError(
            f"a batch of {batch} over {processes.count} processes is no whole number of groups of {group} in each: "
            f"use a number of processes that divides {batch // group}, or a smaller --group-size"
        )
    return images // batch


def _fitting_command(recipe: Recipe, images: int, batch: int, group: int, command: Sequence[str]) -> str:
    """The command for fewer images than a batch, with every option that such a number needs."""
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
    """Check that all processes have the same images and precision, and a resumed run the images it started with."""
    ours = (len(paths), paths.fingerprint(), precision)
    gathered = processes.gather_objects(ours)
    if any(other != ours for other in gathered):
        counts = ", ".join(f"{count} ({name[:6]}, {kind})" for count, name, kind in gathered)
        raise UserError(
            f"the processes differ in their images or precision: {counts}: start all with the same folders and "
            "--precision"
        )
    if state and (state["data"]["images"], state["data"]["hash"]) != ours[:2]:
        raise UserError(
            f"--resume with other images: the run started with {state['data']['images']} "
            f"({state['data']['hash'][:6]}), now there are {ours[0]} ({ours[1][:6]}): name the same folders"
        )
