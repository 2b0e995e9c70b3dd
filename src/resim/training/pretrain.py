"""The pre-training loop, from top to bottom: images in, checkpoints out."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resim.errors import UserError
from resim.pictures.curves import draw_curves
from resim.pictures.pairs import batch_pictures
from resim.pictures.windows import draw_pairs
from resim.training import run_folder
from resim.training.checkpoints import write_atomically
from resim.training.config import Recipe, RunConfig
from resim.training.log import Log
from resim.training.precision import choose_precision
from resim.training.processes import Processes, catch_termination, start_processes
from resim.training.progress import Progress
from resim.training.provenance import versions
from resim.training.schedule import learning_rate
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


@dataclass(frozen=True)
class RunResult:
    """Where a pre-training ended."""

    out: Path
    step: int
    finished: bool
    """False: it was asked to stop before the end, and can be resumed."""


def pretrain(
    recipe: Recipe, run: RunConfig, sources: str | Path | Sequence[str | Path], *, show: bool = True
) -> RunResult:
    """Pre-train a recipe on images without labels.

    Args:
        recipe: what is computed.
        run: where and how.
        sources: folders, images, text files of paths.
        show: print progress.

    Raises:
        UserError: images, settings or a run folder that cannot work; what the remedy is.
    """
    optim = recipe.optim
    with start_processes(run.device) as processes, catch_termination() as signals, contextlib.ExitStack() as held:
        paths = find_images(sources)
        steps = _steps_per_epoch(recipe, len(paths), processes)
        out = Path(processes.gather_objects(run.out or run_folder.default_folder(recipe))[0])
        run_folder.check_folder(out, resume=run.resume)
        held.enter_context(run_folder.hold(out, processes))
        state = run_folder.open_run(out, recipe, resume=run.resume)
        step = state["step"] if state else 0
        end = steps * optim.epochs
        precision = state["precision"] if state else choose_precision(run.precision, processes.device)
        precision = processes.gather_objects(precision)[0]  # it is a measurement: the first process's counts
        if run.precision not in ("auto", precision):
            raise UserError(f"--resume in {run.precision}: the run is in {precision}; leave --precision out")
        _check_agreement(processes, paths, precision, state)
        told = [sources] if isinstance(sources, str | Path) else sources
        data = {"sources": [str(source) for source in told], "images": len(paths), "hash": paths.fingerprint()}

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
        elif processes.first:
            resolved = dataclasses.replace(
                run, out=out, device=processes.device.type, precision=precision, workers=workers
            )
            run_folder.write_config(out, recipe, resolved, data, processes=processes.count)

        dataset = PairDataset(paths, recipe.views, optim.seed)
        order = BatchOrder(
            len(paths), optim.batch_size, seed=optim.seed, start_step=step, end_step=end,
            rank=processes.rank, processes=processes.count, shards=paths.shards,
        )  # fmt: skip
        loader = make_loader(dataset, order, workers=workers, pin_memory=processes.device.type == "cuda")
        finish = Finisher(recipe.views, processes.device)
        bad_files = run_folder.BadFiles(out, processes, run.max_bad_share)
        saved_at = time.monotonic()
        invocation_end = min(end, step + run.stop_after) if run.stop_after else end
        stop = step >= invocation_end

        def checkpoint(done: int, *, keep: bool = False) -> None:
            """Save the state after `done` steps."""
            bad_files.write()
            log.flush()
            if processes.first:
                name = f"epoch_{done // steps:04d}.pt" if keep else None
                run_folder.save(out, _state(recipe, precision, data, stepper, done, steps), keep_as=name)

        with (
            tell_of_killed_workers(),
            contextlib.closing(read_batches(loader)) as batches,
            Progress(epochs=optim.epochs, steps=steps, first_step=step, show=show and processes.first) as progress,
        ):
            log = Log(out, processes, progress, batch_size=optim.batch_size, steps=steps)
            log.start(step)
            _greet(progress, recipe, processes, precision, data, out, step, steps, workers)
            while not stop:
                waiting = time.perf_counter()
                batch = next(batches)
                log.waited(time.perf_counter() - waiting)
                bad_files.seen(len(batch), {file.path: file.reason for file in batch.bad})

                epoch, first_of_epoch = step // steps, step % steps == 0
                lr = learning_rate(optim, epoch)
                for group in stepper.optimizer.param_groups:
                    group["lr"] = lr
                views_q, views_k = finish(batch)
                losses = stepper(views_q, views_k, shuffle_order(optim.batch_size, optim.seed, step))
                log.add(step, lr, losses)
                if first_of_epoch and processes.first and run.picture_every and epoch % run.picture_every == 0:
                    _draw(out, log, recipe, batch, (views_q, views_k), paths, epoch, step)
                step += 1

                reading = step % run.log_every == 0 or step == invocation_end
                end_of_epoch = step % steps == 0
                if reading or end_of_epoch:
                    log.flush()
                save = stop = False
                # on GPUs agreeing waits for the device, so it is done where the metrics are read anyway
                if processes.device.type == "cpu" or processes.count == 1 or reading or end_of_epoch:
                    overdue = time.monotonic() - saved_at >= 60 * run.checkpoint_minutes
                    stop, save = processes.agree(bool(signals), overdue)
                    stop = stop or step >= invocation_end
                if save or stop or end_of_epoch:
                    epochs_done = step // steps
                    keep = end_of_epoch and run.keep_every > 0 and epochs_done % run.keep_every == 0
                    checkpoint(step, keep=keep)
                    saved_at = time.monotonic()

            log.close()
            count = bad_files.write()
            if processes.first:
                _close(progress, out, recipe, step, end, count)
    return RunResult(out, step, finished=step >= end)


def _steps_per_epoch(recipe: Recipe, images: int, processes: Processes) -> int:
    batch, group = recipe.optim.batch_size, recipe.model.group_size
    if images < batch:
        fits = max(images // group * group, 0)
        remedy = f"--batch-size {fits}" if fits else f"--batch-size {images} --group-size {images}"
        raise UserError(f"{images} images are fewer than one batch of {batch}: set {remedy}, or add images")
    if batch % (processes.count * group):
        raise UserError(
            f"a batch of {batch} over {processes.count} processes is no whole number of groups of {group} in each: "
            f"use a number of processes that divides {batch // group}, or a smaller --group-size"
        )
    return images // batch


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
    step: int, steps: int, workers: int,
) -> None:  # fmt: skip
    model, optim = recipe.model, recipe.optim
    device = torch.cuda.get_device_name(processes.device) if processes.device.type == "cuda" else "CPU"
    levels = ", ".join(level.name for level in model.levels) or "no regions"
    progress.say(
        f"{recipe.name}: {model.backbone}, {levels}, {recipe.views.image_size} px, {data['images']} images, "
        f"{optim.epochs} epochs of {steps} steps of {optim.batch_size}"
    )
    progress.say(
        f"on {processes.count} x {device}, {precision}, {workers} loader processes; the run's folder is {out}"
        + (f"; resumed after step {step}" if step else "")
    )
    if model.queue_size > data["images"]:
        fitting = 2 ** int(math.log2(data["images"]))
        progress.say(
            f"warning: the queue of {model.queue_size} keys is larger than the data set of {data['images']} images, so "
            f"it holds keys of the same image as negatives: set --queue-size {fitting} or less"
        )


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
