"""The fine-tuning loop, from top to bottom: a data set and weights in; a detector, its scores and pictures out."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from resim.counts import counted
from resim.datasets.records import DetectionData
from resim.detection import bad_images
from resim.detection.checkpoint import detector_state
from resim.detection.config import DetectRecipe, DetectRun
from resim.detection.evaluate import read_scores
from resim.detection.freeze import freeze_lines
from resim.detection.messages import opening_lines
from resim.detection.samples import records_of
from resim.detection.tuning import Tuning, load_batches, prepare_tuning
from resim.detection.validate import average_statistics, validate
from resim.distributed.processes import start_processes
from resim.draw.curves import draw_curves
from resim.errors import UserError
from resim.runs import folder as run_folder
from resim.runs.bad_files import BadFiles
from resim.runs.bars import Watch
from resim.runs.clock import Clock
from resim.runs.log import Log
from resim.runs.nonfinite import GoBackError, Nonfinite
from resim.runs.pictures import Pictures
from resim.runs.progress import Progress
from resim.signals import catch_termination
from resim.training.optimizer import set_learning_rate
from resim.views.waiting import StalledError, has_given_up
from resim.views.workers import report_killed_workers


@dataclass(frozen=True)
class DetectResult:
    """Where a fine-tuning ended."""

    out: Path
    step: int
    finished: bool
    """False: it was stopped before the end, and can be resumed."""
    scores: dict[str, dict[str, float | None]]
    """The last evaluation's, by kind and name, from 0 to 1; empty without one."""
    stopped: bool = False
    """Whether a signal stopped it."""


def train_detector(
    recipe: DetectRecipe,
    run: DetectRun,
    data: DetectionData,
    val: DetectionData | None,
    *,
    init: str | Path = "random",
    show: bool = True,
    watch: Watch | None = None,
) -> DetectResult:
    """Fine-tune a detector from pre-trained weights, and score it.

    Args:
        recipe: what is computed.
        run: where and how.
        data: to train on, as `resim.datasets.layouts.read_detection` returns it: boxes in px.
        val: to evaluate on; None: no evaluation.
        init: whatever `read_weights` reads, `random`, or `random:RECIPE`.
        show: print progress.
        watch: called with the steps done and all steps.

    Raises:
        UserError: data, weights, settings or a run folder that cannot work, and the remedy.
    """
    with start_processes(run.device, timeout_minutes=run.timeout_minutes) as processes, catch_termination() as signals:
        stop_at = None
        while True:
            with contextlib.ExitStack() as resources:
                tuning = prepare_tuning(recipe, run, data, val, str(init), processes, resources)
                stop_at = stop_at or (tuning.step + run.stop_after if run.stop_after else tuning.end)
                try:
                    return _train(tuning, run, signals, stop_at, show, watch)
                except GoBackError:
                    run = dataclasses.replace(run, out=tuning.out, resume=True, precision=tuning.stepper.precision)
            del tuning  # its memory, before the detector is built again


def _train(
    tuning: Tuning, run: DetectRun, signals: Sequence[int], stop_at: int, show: bool, watch: Watch | None
) -> DetectResult:
    """Train from the last checkpoint to step `stop_at`.

    Raises:
        GoBackError: a batch is to be passed over: repeat the steps since the last checkpoint.
        UserError: as `train_detector`.
    """
    stepper, tune, step, end = tuning.stepper, tuning.recipe.tune, tuning.step, tuning.end
    processes = stepper.processes
    bad_files = BadFiles(tuning.out, processes, run.max_bad_share)
    nonfinite = Nonfinite(tuning.out, processes, run.on_nonfinite)
    with (
        _listing_bad_on_error(tuning, bad_files),
        report_killed_workers(can_resume=True),
        Progress(steps=end, first_step=step, show=show and processes.first, watch=watch) as progress,
        contextlib.closing(load_batches(tuning, step, end, signals=signals)) as batches,
    ):
        log = Log(
            tuning.out, processes, progress, batch_size=tune.batch_size,
            epoch_steps=len(tuning.data) / tune.batch_size, end=end, workers=tuning.workers,
        )  # fmt: skip
        log.start(step)
        for line in [*_opening(tuning), *nonfinite.lines()]:
            progress.say(line)
        pictures = Pictures(progress.say)
        clock = Clock(run, processes, signals, step=step, end=stop_at, boundary=tuning.eval_every)
        is_evaluated = tuning.is_evaluated or not tuning.is_evaluation_due(step)
        if not is_evaluated:  # stopped between checkpoint and evaluation
            is_evaluated = _evaluate(tuning, step, progress, bad_files, pictures, signals, clock)
        while not clock.is_over:
            batch = log.next_batch(batches)
            if has_given_up(processes, batch) or batch is None:  # a signal ends the run while a loader hangs
                nonfinite.flush(log, progress)
                average_statistics(tuning)
                _save(tuning, step, is_evaluated=True)
                clock.stop()
                break
            bad_files.count(len(batch), {file.path: file.reason for sample in batch.samples for file in sample.bad})

            if step not in nonfinite.passed_over:
                lr = tune.learning_rate(step)
                set_learning_rate(stepper.optimizer, lr)
                losses = stepper(batch)  # forward, losses, backward, one step of the optimiser
                log.add(step, lr, losses)
                nonfinite.keep(step, records_of(batch, tuning.data.records))
            step += 1

            due = clock.tick()
            if due.read:
                nonfinite.flush(log, progress)
            if due.save:
                average_statistics(tuning)
                _list_bad(tuning, bad_files)
                _save(tuning, step, is_evaluated=False)
                if tuning.is_evaluation_due(step):
                    is_evaluated = _evaluate(tuning, step, progress, bad_files, pictures, signals, clock)
                clock.restart_minutes()

        log.close()
        _list_bad(tuning, bad_files)
        if processes.first:
            _close(tuning, step, progress, bad_files, pictures, is_finished=step >= end and is_evaluated)
    scores = read_scores(tuning.out)
    last = scores[-1]["scores"] if scores else {}
    return DetectResult(tuning.out, step, step >= end and is_evaluated, last, stopped=clock.is_stopped)


def _evaluate(
    tuning: Tuning, step: int, progress: Progress, bad_files: BadFiles, pictures: Pictures, signals: Sequence[int],
    clock: Clock,
) -> bool:  # fmt: skip
    """Evaluate, and save that it is done; False: a signal has ended it while a loader hangs, and the training with it.

    The checkpoint that was written before then has no evaluation, which the resumed run makes.
    """
    try:
        validate(tuning, step, progress, bad_files, pictures, signals)
    except StalledError:
        clock.stop()
        return False
    _save(tuning, step, is_evaluated=True)
    return True


def _opening(tuning: Tuning) -> list[str]:
    """The first lines for the user."""
    stepper = tuning.stepper
    report = None if tuning.is_resumed else tuning.init_report
    lines = opening_lines(
        tuning.recipe, tuning.run, tuning.data, tuning.val, stepper.processes, stepper.precision, tuning.out,
        tuning.step, report, tuning.not_learnt,
    )  # fmt: skip
    lines += tuning.notes
    lines += freeze_lines(stepper.model, tuning.recipe.detector, report)
    if tuning.num_lost:
        images = counted(tuning.num_lost, "image")
        lines.append(f"gone: {images} that could not be decoded; the run goes on as if there were no change")
    return lines


@contextlib.contextmanager
def _listing_bad_on_error(tuning: Tuning, bad_files: BadFiles) -> Iterator[None]:
    """If anything raised inside ends the run, list the files that cannot be decoded first, and their annotations."""
    try:
        with bad_files.listed_on_error():
            yield
    except BaseException:
        if bad_files.reasons:
            with contextlib.suppress(UserError):  # of a full disk, which would hide the error
                bad_images.remember(tuning.out, "train", tuning.read_data, bad_files.reasons)
        raise


def _list_bad(tuning: Tuning, bad_files: BadFiles) -> None:
    """Bring the lists of files that cannot be decoded up to date. All processes must call it."""
    bad_files.write()
    if tuning.stepper.processes.first and bad_files.reasons:
        bad_images.remember(tuning.out, "train", tuning.read_data, bad_files.reasons)


def _save(tuning: Tuning, step: int, *, is_evaluated: bool) -> None:
    stepper = tuning.stepper
    if not stepper.processes.first:
        return
    state = detector_state(
        tuning.recipe, tuning.data, tuning.init, precision=stepper.precision, data=tuning.described_data, step=step,
        evaluated=is_evaluated, metadata=tuning.origin, model=stepper.model.state_dict(),
        optimizer=stepper.optimizer.state_dict(),
    )  # fmt: skip
    run_folder.save_state(tuning.out, state)


def _close(
    tuning: Tuning, step: int, progress: Progress, bad_files: BadFiles, pictures: Pictures, *, is_finished: bool
) -> None:  # fmt: skip
    out, metrics = tuning.out, tuning.out / "metrics.jsonl"
    if metrics.exists() and metrics.stat().st_size:
        title = f"{tuning.recipe.name}, {tuning.init}"
        pictures.write(lambda: draw_curves(metrics, out / "curves.png", title=title))
    if pictures.num_lost:
        progress.say(f"{counted(pictures.num_lost, 'picture')} could not be written")
    if bad_files.reasons:
        what = "replaced in training, left out of evaluations"
        count = counted(len(bad_files.reasons), "file")
        progress.say(f"{count} could not be decoded ({what}): see {out / 'bad_files.txt'}")
    if not is_finished:
        progress.say(f"stopped after step {step} of {tuning.end}, saved; go on with --out {out} --resume")
        return
    names = ("checkpoints/last.pt", "scores.jsonl", "results.json", "pictures/detections.png", "curves.png")
    progress.say("done: " + ", ".join(str(out / name) for name in names if (out / name).exists()))
