"""The pre-training loop, from images to checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from resim.counts import counted
from resim.distributed.processes import Processes, start_processes
from resim.draw.curves import draw_curves
from resim.draw.sheet import write_png
from resim.draw.view_pairs import batch_pictures
from resim.draw.windows import draw_pairs
from resim.runs import folder as run_folder
from resim.runs.bad_files import BadFiles
from resim.runs.bars import Watch
from resim.runs.clock import Clock
from resim.runs.config import Recipe, RunConfig
from resim.runs.log import Log
from resim.runs.nonfinite import GoBackError, Nonfinite
from resim.runs.pictures import Pictures
from resim.runs.progress import Progress
from resim.signals import catch_termination
from resim.training.advice import advise
from resim.training.optimizer import set_learning_rate
from resim.training.pair_records import records_of
from resim.training.precision import describe_precision
from resim.training.prepare import MakeProbe, Prepared, checkpoint_state, prepare
from resim.training.schedule import learning_rate
from resim.views.finish import Finisher
from resim.views.loader import BatchOrder, PairBatch, PairDataset, make_loader, read_batches, shuffle_order
from resim.views.views import Views
from resim.views.waiting import has_given_up
from resim.views.workers import report_killed_workers

_PICTURE_PAIRS = 4


@dataclass(frozen=True)
class RunResult:
    """The end of a pre-training."""

    out: Path
    """The run's folder."""
    step: int
    """Steps done."""
    finished: bool
    """False: it was stopped before the end, and can be resumed."""
    stopped: bool = False
    """Whether a signal stopped it."""


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
        show: whether progress is printed.
        probe: makes the function that measures the model before the first step and after every epoch, on the first
            process; `resim.probes.online.OnlineProbe` is one. It must not change the model.
        watch: called with the steps done and all steps.
        command: words of the command line, for the advice on a recipe that does not fit the number of images; none:
            the advice names options alone.

    Raises:
        ValueError: `run.probe_every` is set and `probe` is None.
        UserError: images, settings or a run folder that cannot be used, with the remedy.
    """
    if run.probe_every and probe is None:
        raise ValueError("probe_every needs a probe: pretrain(..., probe=resim.probes.online.OnlineProbe)")
    with start_processes(run.device, timeout_minutes=run.timeout_minutes) as processes, catch_termination() as signals:
        stop_at = None
        while True:
            with contextlib.ExitStack() as resources:
                ready = prepare(recipe, run, sources, processes, resources, probe=probe, command=command)
                stop_at = stop_at or (ready.step + run.stop_after if run.stop_after else ready.end)
                try:
                    return _train(recipe, run, ready, processes, signals, stop_at, show, watch, command)
                except GoBackError:
                    run = dataclasses.replace(run, out=ready.out, resume=True, precision=ready.precision)
            del ready  # its memory, before the model is built again


def _train(
    recipe: Recipe,
    run: RunConfig,
    ready: Prepared,
    processes: Processes,
    signals: Sequence[int],
    stop_at: int,
    show: bool,
    watch: Watch | None,
    command: Sequence[str],
) -> RunResult:
    """Train from the last checkpoint to step `stop_at`.

    Raises:
        GoBackError: a batch is to be passed over: repeat the steps since the last checkpoint.
        UserError: as `pretrain`.
    """
    stepper, step, epoch_steps = ready.stepper, ready.step, ready.epoch_steps
    optim, is_first = recipe.optim, processes.first
    bad_files = BadFiles(ready.out, processes, run.max_bad_share)
    nonfinite = Nonfinite(ready.out, processes, run.on_nonfinite)
    finish_views = Finisher(recipe.views, processes.device)
    with (
        bad_files.listed_on_error(),
        report_killed_workers(can_resume=True),
        contextlib.closing(_load_batches(recipe, run, ready, processes, signals)) as batches,
        Progress(
            steps=ready.end, epoch_steps=epoch_steps, first_step=step, show=show and is_first, watch=watch
        ) as progress,
    ):
        log = Log(
            ready.out, processes, progress, batch_size=optim.batch_size, epoch_steps=epoch_steps,
            end=ready.end, workers=ready.workers,
        )  # fmt: skip
        log.start(step)
        _print_opening(progress, recipe, run, ready, processes, command)
        for line in nonfinite.lines():
            progress.say(line)

        pictures = Pictures(progress.say)
        clock = Clock(run, processes, signals, step=step, end=stop_at, boundary=epoch_steps)
        while not clock.is_over:
            batch = log.next_batch(batches)
            if has_given_up(processes, batch) or batch is None:  # a signal ends the run while a loader hangs
                nonfinite.flush(log, progress)
                if is_first:
                    _save(recipe, run, ready, step)
                clock.stop()
                break
            bad_files.count(len(batch), {file.path: file.reason for file in batch.bad})
            if step % epoch_steps == 0:  # after the checkpoint: nothing is lost if it is interrupted
                _measure(log, ready, step)

            if step not in nonfinite.passed_over:
                lr = learning_rate(optim, step, epoch_steps)
                set_learning_rate(stepper.optimizer, lr)
                views_q, views_k = finish_views(batch)  # on the device: flips, colours, blur
                order = shuffle_order(optim.batch_size, optim.seed, step)
                losses = stepper(views_q, views_k, order)  # forward, losses, backward, one step of the optimiser

                epoch, in_epoch = divmod(step, epoch_steps)
                if in_epoch == 0 and is_first and run.picture_every and epoch % run.picture_every == 0:
                    _draw_views(log, pictures, recipe, ready, batch, (views_q, views_k), epoch, step)
                log.add(step, lr, losses)
                nonfinite.keep(step, records_of(batch, ready.paths), shuffle=order.tolist())
            step += 1

            due = clock.tick()
            if due.read:
                nonfinite.flush(log, progress)
            if due.save:
                bad_files.write()
                if is_first:
                    _save(recipe, run, ready, step)
                clock.restart_minutes()

        if step == ready.end:
            _measure(log, ready, step)
        log.close()
        num_bad = bad_files.write()
        if is_first:
            _close(progress, pictures, ready, recipe, step, num_bad)
    return RunResult(ready.out, step, finished=step >= ready.end, stopped=clock.is_stopped)


def _load_batches(
    recipe: Recipe, run: RunConfig, ready: Prepared, processes: Processes, signals: Sequence[int]
) -> Generator[PairBatch | None, None, None]:
    """The batches of all steps, or None after those that are read before a signal ends the run."""
    dataset = PairDataset(ready.paths, recipe.views, recipe.optim.seed, max_pixels=ready.max_pixels)
    order = BatchOrder(
        len(ready.paths), recipe.optim.batch_size, seed=recipe.optim.seed, start_step=ready.step, end_step=ready.end,
        rank=processes.rank, processes=processes.count, shards=ready.paths.shards,
    )  # fmt: skip
    pin_memory = processes.device.type == "cuda"
    loader = make_loader(dataset, order, workers=ready.workers, pin_memory=pin_memory)
    yield from read_batches(loader, signals, run.slow_read_seconds)
    yield None


def _measure(log: Log, ready: Prepared, step: int) -> None:
    """Measure the model between two steps, on the first process."""
    if ready.measure is not None:
        log.record_reading(step, functools.partial(ready.measure, ready.stepper.model, step))


def _save(recipe: Recipe, run: RunConfig, ready: Prepared, step: int) -> None:
    epoch, in_epoch = divmod(step, ready.epoch_steps)
    is_kept = in_epoch == 0 and run.keep_every > 0 and epoch % run.keep_every == 0
    state = checkpoint_state(recipe, ready, step)
    run_folder.save_state(ready.out, state, keep_as=f"epoch_{epoch:04d}.pt" if is_kept else None)


def _print_opening(
    progress: Progress, recipe: Recipe, run: RunConfig, ready: Prepared, processes: Processes, command: Sequence[str]
) -> None:
    model, optim = recipe.model, recipe.optim
    device = torch.cuda.get_device_name(processes.device) if processes.device.type == "cuda" else "CPU"
    levels = ", ".join(level.name for level in model.levels) or "no regions"
    progress.say(
        f"{recipe.name}: {model.backbone}, {levels}, {recipe.views.image_size} px, {len(ready.paths)} images, "
        f"{counted(optim.epochs, 'epoch')} of {counted(ready.epoch_steps, 'step')} of {optim.batch_size}"
    )
    precision = describe_precision(ready.precision, processes.device)
    place = f"{processes.count} x {device}, {precision}, {ready.workers} loader processes"
    line = f"on {place}; the run's folder is {ready.out}"
    if ready.is_resumed:
        line += f"; resumed after step {ready.step}"
        if ready.step == ready.end:
            line += ", the last one: nothing is left to do"
    progress.say(line)
    for text in ready.notes:
        progress.say(text)
    if ready.paths.note():
        progress.say(ready.paths.note())
    if ready.start:
        progress.say(ready.start.line)
    if not ready.is_resumed:
        advice = advise(recipe, len(ready.paths), processes=processes.count, start_epoch=run.start_epoch)
        for text in advice.lines(command):
            progress.say(text)


def _draw_views(
    log: Log, pictures: Pictures, recipe: Recipe, ready: Prepared, batch: PairBatch, views: tuple[Views, Views],
    epoch: int, step: int,
) -> None:  # fmt: skip
    sheet = draw_pairs(batch_pictures(batch, views, recipe.model.levels, ready.paths, _PICTURE_PAIRS))
    pictures.write(lambda: write_png(ready.out / "pictures" / f"epoch_{epoch + 1:04d}.png", sheet))
    log.add_picture("views", step, np.asarray(sheet))


def _close(
    progress: Progress, pictures: Pictures, ready: Prepared, recipe: Recipe, step: int, num_bad: int
) -> None:  # fmt: skip
    out, metrics = ready.out, ready.out / "metrics.jsonl"
    if metrics.exists() and metrics.stat().st_size:
        title = f"{recipe.name}, {recipe.model.backbone}"
        pictures.write(lambda: draw_curves(metrics, out / "curves.png", title=title))
    if pictures.num_lost:
        progress.say(f"{counted(pictures.num_lost, 'picture')} could not be written")
    if num_bad:
        progress.say(f"{num_bad} files could not be decoded and were replaced: see {out / 'bad_files.txt'}")
    if step < ready.end:
        progress.say(f"stopped after step {step} of {ready.end}, saved; go on with --out {out} --resume")
        return
    items = ("checkpoints/last.pt", "curves.png", "pictures")
    progress.say("done: " + ", ".join(str(out / item) for item in items if (out / item).exists()))
