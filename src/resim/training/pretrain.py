"""The pre-training loop, from top to bottom: images in, checkpoints out."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from resim.counts import counted
from resim.errors import UserError
from resim.model.resim import ReSim
from resim.pictures.curves import draw_curves
from resim.pictures.pairs import batch_pictures
from resim.pictures.windows import draw_pairs
from resim.training import run_folder
from resim.training.advice import advise, fitted_command
from resim.training.checkpoints import write_atomically
from resim.training.config import Recipe, RunConfig
from resim.training.log import Log, Reading
from resim.training.loop import run_steps
from resim.training.precision import choose_precision, tell_precision
from resim.training.processes import Processes, catch_termination, start_processes
from resim.training.progress import Progress, Watch
from resim.training.provenance import versions
from resim.training.schedule import learning_rate
from resim.training.starting import read_start, start
from resim.training.step import Stepper, make_stepper
from resim.views.finish import Finisher
from resim.views.folder import PathList, find_images
from resim.views.loader import (
    BatchOrder,
    PairBatch,
    PairDataset,
    make_loader,
    read_batches,
    shuffle_order,
    tell_of_killed_workers,
)
from resim.views.views import Views

PICTURE_PAIRS = 4

Look = Callable[[ReSim, int], Reading]
"""A model and the number of steps that it has been trained -> what was found out about it."""
MakeProbe = Callable[[Recipe, RunConfig, Literal["float32", "bf16"], Sequence[str], int], Look]
"""The recipe, the run, its precision, the training images and the steps of an epoch -> what looks at the model."""


@dataclass(frozen=True)
class RunResult:
    """Where a pre-training ended."""

    out: Path
    step: int
    finished: bool
    """False: it was asked to stop before the end, and can be resumed."""


def pretrain(
    recipe: Recipe,
    run: RunConfig,
    sources: str | Path | Sequence[str | Path],
    *,
    show: bool = True,
    probe: MakeProbe | None = None,
    watch: Watch | None = None,
    command: Sequence[str] = (),
) -> RunResult:
    """Pre-train a recipe on images without labels.

    Args:
        recipe: what is computed.
        run: where and how.
        sources: folders, images, text files of paths.
        show: print progress.
        probe: makes what looks at the model before the first step and after every epoch, on the first process, such as
            `resim.probes.online.OnlineProbe`; it must not change it.
        watch: told of the steps done and of all steps.
        command: the words by which it was called, from which a command that fits the images better is made where this
            recipe is odd for so many; none: only the options are named.

    Raises:
        ValueError: `run` asks for probes and `probe` is None.
        UserError: images, settings or a run folder that cannot work; what the remedy is.
    """
    if run.probe_every and probe is None:
        raise ValueError("probe_every needs what measures: pretrain(..., probe=resim.probes.online.OnlineProbe)")
    optim = recipe.optim
    with start_processes(run.device) as processes, catch_termination() as signals, contextlib.ExitStack() as held:
        paths = find_images(sources)
        steps = _steps_per_epoch(recipe, paths, processes, command)
        resume = run_folder.goes_on(run.out, run.resume)
        out = Path(processes.gather_objects(run.out or run_folder.default_folder(recipe))[0])
        run_folder.check_folder(out, resume=resume)
        held.enter_context(run_folder.hold(out, processes))
        state = run_folder.open_run(out, recipe, resume=resume)
        if resume:
            begun, at = run_folder.begun_with(out, run.start_from, run.start_epoch)
            run = dataclasses.replace(run, start_from=begun, start_epoch=at)
        first = None if state else read_start(run, recipe, processes)
        step = state["step"] if state else steps * run.start_epoch
        end = steps * optim.epochs
        precision = state["precision"] if state else choose_precision(run.precision, processes.device)
        precision = processes.gather_objects(precision)[0]  # it is a measurement: the first process's counts
        if run.precision not in ("auto", precision):
            raise UserError(f"--resume in {run.precision}: the run is in {precision}; leave --precision out")
        _check_agreement(processes, paths, precision, state)
        told = [sources] if isinstance(sources, str | Path) else sources
        look = probe(recipe, run, precision, paths, steps) if probe is not None and processes.first else None
        data = {"sources": [str(source) for source in told], "images": len(paths), "hash": paths.fingerprint()}

        # the licence and origin of imported weights go with what is made of them
        origin = (state or (first.state if first else {})).get("imported")
        imported = {"imported": origin} if origin else {}

        workers = run.workers if run.workers >= 0 else min(processes.cores, 16)
        stepper = make_stepper(
            recipe.model,
            optim,
            processes,
            precision=precision,
            groups_at_a_time=run.groups_at_a_time,
            compile_encoders=run.compile,
        )
        if state:
            stepper.model.load_state_dict(state["model"])
            stepper.optimizer.load_state_dict(state["optimizer"])
            if processes.first:
                run_folder.note_resume(out, step)
        elif first:
            start(stepper, first.state)
        if not state and processes.first:
            resolved = dataclasses.replace(
                run, out=out, device=processes.device.type, precision=precision, workers=workers
            )
            begins = {"start": first.record} if first else {}
            run_folder.write_config(out, recipe, resolved, data, processes=processes.count, **begins)

        dataset = PairDataset(paths, recipe.views, optim.seed)
        order = BatchOrder(
            len(paths), optim.batch_size, seed=optim.seed, start_step=step, end_step=end,
            rank=processes.rank, processes=processes.count, shards=paths.shards,
        )  # fmt: skip
        loader = make_loader(dataset, order, workers=workers, pin_memory=processes.device.type == "cuda")
        finish = Finisher(recipe.views, processes.device)
        bad_files = run_folder.BadFiles(out, processes, run.max_bad_share)

        def checkpoint(done: int) -> None:
            """Save the state after `done` steps."""
            bad_files.write()
            if processes.first:
                epochs_done, in_epoch = divmod(done, steps)
                keep = in_epoch == 0 and run.keep_every > 0 and epochs_done % run.keep_every == 0
                name = f"epoch_{epochs_done:04d}.pt" if keep else None
                run_folder.save(out, _state(recipe, precision, data, stepper, done, steps) | imported, keep_as=name)

        with (
            tell_of_killed_workers(),
            contextlib.closing(read_batches(loader)) as batches,
            Progress(
                steps=end, epoch_steps=steps, first_step=step, show=show and processes.first, watch=watch
            ) as progress,
        ):
            log = Log(out, processes, progress, batch_size=optim.batch_size, steps=steps, end=end, workers=workers)
            log.start(step)
            resumed = step if state else None
            _greet(progress, recipe, processes, precision, data, out, resumed, steps, workers, paths.note())
            if first:
                progress.say(first.line)
            if not state:
                advice = advise(recipe, len(paths), processes=processes.count, start_epoch=run.start_epoch)
                for line in advice.lines(command):
                    progress.say(line)

            def take_step(batch: PairBatch, step: int) -> tuple[float, dict[str, Tensor]]:
                """One batch, one step of SGD; the learning rate and the numbers of the step."""
                bad_files.seen(len(batch), {file.path: file.reason for file in batch.bad})
                epoch = step // steps
                if look is not None and step % steps == 0:  # after the checkpoint: nothing is lost while it looks
                    log.look(step, functools.partial(look, stepper.model, step))
                lr = learning_rate(optim, step, steps)
                for group in stepper.optimizer.param_groups:
                    group["lr"] = lr
                views_q, views_k = finish(batch)
                losses = stepper(views_q, views_k, shuffle_order(optim.batch_size, optim.seed, step))
                if step % steps == 0 and processes.first and run.picture_every and epoch % run.picture_every == 0:
                    _draw(out, log, recipe, batch, (views_q, views_k), paths, epoch, step)
                return lr, losses

            step = run_steps(
                batches, take_step, checkpoint, log, run, processes, signals, step=step, end=end, every=steps
            )
            if look is not None and step == end:
                log.look(step, functools.partial(look, stepper.model, step))
            log.close()
            count = bad_files.write()
            if processes.first:
                _close(progress, out, recipe, step, end, count)
    return RunResult(out, step, finished=step >= end)


def _steps_per_epoch(recipe: Recipe, paths: PathList, processes: Processes, command: Sequence[str]) -> int:
    images = len(paths)
    batch, group = recipe.optim.batch_size, recipe.model.group_size
    if images < batch:
        fits = images // group * group
        remedy = f"--batch-size {fits}" if fits else f"--batch-size {images} --group-size {images}"
        others = f"; {paths.passed}" if paths.passed else ""
        few = "1 image is" if images == 1 else f"{images} images are"
        told = f"{few} fewer than one batch of {batch}: set {remedy}, or add images{others}"
        raise UserError(told + _fitted(recipe, images, fits or images, min(group, images), command))
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
    found = (len(paths), paths.fingerprint(), precision)
    everyone = processes.gather_objects(found)
    if any(other != found for other in everyone):
        counts = ", ".join(f"{count} ({name[:6]}, {kind})" for count, name, kind in everyone)
        raise UserError(f"the processes differ in their images or precision: {counts}; give all the same --precision")
    if state and (state["data"]["images"], state["data"]["hash"]) != found[:2]:
        raise UserError(
            f"--resume with other images: the run began with {state['data']['images']} "
            f"({state['data']['hash'][:6]}), now there are {found[0]} ({found[1][:6]}); give it the same folders"
        )


def _state(
    recipe: Recipe, precision: str, data: dict[str, Any], stepper: Stepper, done: int, steps: int
) -> dict[str, Any]:
    return {
        "resim": versions().get("resim", "not installed"),
        "recipe": recipe.to_json(),
        "precision": precision,
        "data": data,
        "step": done,
        "epoch": done // steps,
        "model": stepper.model.state_dict(),
        "optimizer": stepper.optimizer.state_dict(),
    }


def _greet(
    progress: Progress, recipe: Recipe, processes: Processes, precision: str, data: dict[str, Any], out: Path,
    resumed: int | None, steps: int, workers: int, note: str,
) -> None:  # fmt: skip
    model, optim = recipe.model, recipe.optim
    device = torch.cuda.get_device_name(processes.device) if processes.device.type == "cuda" else "CPU"
    levels = ", ".join(level.name for level in model.levels) or "no regions"
    progress.say(
        f"{recipe.name}: {model.backbone}, {levels}, {recipe.views.image_size} px, {data['images']} images, "
        f"{counted(optim.epochs, 'epoch')} of {counted(steps, 'step')} of {optim.batch_size}"
    )
    how = tell_precision(precision, processes.device)
    where = f"on {processes.count} x {device}, {how}, {workers} loader processes; the run's folder is {out}"
    if resumed is not None:
        where += f"; resumed after step {resumed}"
    if resumed == steps * optim.epochs:
        where += ", the last one: nothing is left to do"
    progress.say(where)
    if note:
        progress.say(note)


def _draw(
    out: Path, log: Log, recipe: Recipe, batch: PairBatch, views: tuple[Views, Views], paths: PathList, epoch: int,
    step: int,
) -> None:  # fmt: skip
    sheet = draw_pairs(batch_pictures(batch, views, recipe.model.levels, paths, PICTURE_PAIRS))
    path = out / "pictures" / f"epoch_{epoch + 1:04d}.png"
    write_atomically(path, lambda file: sheet.save(file, format="png"))
    log.picture("views", step, np.asarray(sheet))


def _close(progress: Progress, out: Path, recipe: Recipe, step: int, end: int, bad: int) -> None:
    metrics = out / "metrics.jsonl"
    if metrics.exists() and metrics.stat().st_size:
        draw_curves(metrics, out / "curves.png", title=f"{recipe.name}, {recipe.model.backbone}")
    if bad:
        progress.say(f"{bad} files could not be decoded and were replaced: see {out / 'bad_files.txt'}")
    if step < end:
        progress.say(f"stopped after step {step} of {end}, saved; go on with --out {out} --resume")
        return
    items = itertools.chain(["checkpoints/last.pt", "curves.png"], ["pictures"] if (out / "pictures").exists() else [])
    progress.say("done: " + ", ".join(str(out / item) for item in items))
