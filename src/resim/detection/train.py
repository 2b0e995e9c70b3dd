"""Fine-tuning, from top to bottom: a data set and weights in; a detector, its scores and pictures out."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resim.counts import counted
from resim.datasets.records import DetectionData
from resim.detection import bad_images
from resim.detection.checkpoint import check_same_run, detector_state
from resim.detection.config import DetectRecipe, DetectRun
from resim.detection.detector import build_detector
from resim.detection.evaluate import kinds_of, lines, official_scores, read_scores, write_evaluation
from resim.detection.freeze import freeze_lines, freeze_parts
from resim.detection.init import InitReport, leaves_open, load_init, resolve
from resim.detection.left_out import left_out
from resim.detection.messages import opening_lines
from resim.detection.norms import recompute_statistics
from resim.detection.predict import detect
from resim.detection.prepare import check_tasks, fingerprint, usable, weights_fingerprint, with_classes_of
from resim.detection.samples import DetectionBatch, ShapeOrder, TrainingSet, collate_samples, read_samples
from resim.detection.step import DetectorStepper, make_detector_stepper
from resim.distributed.processes import Processes, catch_termination, start_processes
from resim.draw.curves import draw_curves
from resim.errors import UserError
from resim.exchange.sources import is_at_hand, is_untrained, untrained_model
from resim.exchange.weights import Weights, read_weights
from resim.runs import folder as run_folder
from resim.runs.bad_files import BadFiles
from resim.runs.bars import Watch
from resim.runs.clock import Clock
from resim.runs.log import Log
from resim.runs.progress import Progress
from resim.training.optimizer import set_learning_rate
from resim.training.precision import choose_precision
from resim.training.starting import download_once
from resim.views.loader import make_loader
from resim.views.workers import report_killed_workers

_PRECISE_STREAM = 1  # added to the seed: batches for statistics are other draws than those trained on


@dataclass(frozen=True)
class DetectResult:
    """Where a fine-tuning ended."""

    out: Path
    step: int
    finished: bool
    """False: it was asked to stop before the end, and can be resumed."""
    scores: dict[str, dict[str, float | None]]
    """The last evaluation's, by kind and name, from 0 to 1; empty without one."""


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
        data: to train on.
        val: to evaluate on; None: no evaluation.
        init: whatever `read_weights` reads, `random`, or `random:RECIPE`.
        show: print progress.
        watch: told of the steps done and of all steps.

    Raises:
        UserError: data, weights, settings or a run folder that cannot work, and what the remedy is.
    """
    with start_processes(run.device) as processes, catch_termination() as signals, contextlib.ExitStack() as held:
        if recipe.tune.batch_size % processes.count:
            raise UserError(
                f"a batch of {recipe.tune.batch_size} cannot be shared among {processes.count} processes: "
                "set --batch-size to a multiple"
            )
        open_fields = leaves_open(recipe.detector)
        resume = run_folder.should_resume(run.out, run.resume)
        has_state = resume and run.out is not None and (run.out / "checkpoints" / "last.pt").exists()
        # a run that goes on needs its weights no more, but they are compared where they still are
        needed = not is_untrained(init) and (open_fields or not has_state or is_at_hand(init))
        if needed:
            download_once(str(init), processes)
        weights = read_weights(init) if needed else None
        model = untrained_model(init) if is_untrained(init) else None
        recipe = dataclasses.replace(recipe, detector=resolve(recipe.detector, weights, model))
        check_tasks(recipe.detector, data)
        not_learnt = left_out(data, recipe)
        whole, data = data, usable(data, recipe)
        val = None if val is None else with_classes_of(val, data.classes, data.category_ids, data.source)
        out = Path(processes.gather_objects(run.out or run_folder.default_folder(recipe))[0])
        run_folder.check_folder(out, resume=resume)
        held.enter_context(run_folder.lock_folder(out, processes))
        state = run_folder.open_run(out, recipe, resume=resume)
        precision = state["precision"] if state else choose_precision(run.precision, processes.device)
        precision = processes.gather_objects(precision)[0]
        gone = 0  # images that could not be decoded and are not in the data any more
        if state and fingerprint(data) != state["data"]["hash"]:
            whole, before = bad_images.put_back(out, "train", whole), len(whole)
            data, gone = usable(whole, recipe), len(whole) - before
        if state and val is not None and fingerprint(val) != state["data"]["val_hash"]:
            val, before = bad_images.put_back(out, "val", val), len(val)
            gone += len(val) - before
        told = {"source": data.source, "images": len(data), "objects": data.num_objects, "hash": fingerprint(data)}
        told |= {"val": None if val is None else val.source, "val_hash": None if val is None else fingerprint(val)}
        if val is not None and val.held_out is not None:
            told |= {"split": val.held_out.to_json()}
        told |= {"init_hash": None if weights is None else weights_fingerprint(weights)}
        if state:
            check_same_run(state, told, str(init))
            told["init_hash"] = state["data"]["init_hash"]
        stepper, report = _stepper(recipe, run, data, weights, processes, precision)
        if state:
            stepper.model.load_state_dict(state["model"])
            stepper.optimizer.load_state_dict(state["optimizer"])
            if processes.first:
                run_folder.record_resume(out, state["step"])
        elif processes.first:
            resolved = dataclasses.replace(run, out=out, device=processes.device.type, precision=precision)
            run_folder.write_config(
                out, recipe, resolved, told, kind="detect", init=str(init), processes=processes.count,
                classes=data.classes, weights=dataclasses.asdict(report),
            )  # fmt: skip
        bad_files = BadFiles(out, processes, run.max_bad_share)
        tuning = _Tuning(
            recipe,
            run,
            data,
            val,
            stepper,
            out,
            told,
            str(init),
            origin_of(weights, state),
            not_learnt,
            whole,
            bad_files,
            gone,
        )
        return tuning.go(state, report, signals, show=show, watch=watch)


@dataclass
class _Tuning:
    """A fine-tuning under way: what its steps, evaluations and checkpoints share."""

    recipe: DetectRecipe
    run: DetectRun
    data: DetectionData
    val: DetectionData | None
    stepper: DetectorStepper
    out: Path
    told: dict[str, Any]
    init: str
    origin: dict[str, str]
    """Licence and origin of the weights that it began with, which go with what is made of them."""
    not_learnt: list[str]
    """Lines on what is left out of the training."""
    whole: DetectionData
    """What is trained on as it was read, with the images that the recipe leaves out."""
    bad_files: BadFiles
    gone: int
    """Images that could not be decoded and have been taken out since."""

    def go(
        self, state: dict[str, Any] | None, report: InitReport, signals: list[int], *, show: bool, watch: Watch | None
    ) -> DetectResult:
        processes, tune, run = self.stepper.processes, self.recipe.tune, self.run
        step, end = (state["step"] if state else 0), tune.steps
        workers = run.workers if run.workers >= 0 else min(processes.cores, 16)

        first = processes.first
        with (
            report_killed_workers(),
            Progress(steps=end, first_step=step, show=show and first, watch=watch) as progress,
            contextlib.closing(self._batches(step, end, workers)) as batches,
        ):
            log = Log(
                self.out, processes, progress, batch_size=tune.batch_size,
                epoch_steps=len(self.data) / tune.batch_size, end=end, workers=workers,
            )  # fmt: skip
            log.start(step)
            for line in opening_lines(
                self.recipe, run, self.data, self.val, processes, self.stepper.precision, self.out, step,
                None if state else report, self.not_learnt,
            ):  # fmt: skip
                progress.say(line)
            for line in freeze_lines(self.stepper.model, self.recipe.detector, None if state else report):
                progress.say(line)
            if self.gone:
                progress.say(
                    f"gone: {counted(self.gone, 'image')} that could not be decoded; the run goes on as if there were "
                    "no change"
                )
            if state and not state["evaluated"] and self._is_due(step):
                self._evaluate(step, progress, workers)  # it was stopped between a checkpoint and its evaluation
                self._save(step, evaluated=True)

            clock = Clock(run, processes, signals, step=step, end=end, boundary=self._every)
            while not clock.is_over:
                batch = log.next_batch(batches)
                self._count_bad(batch)
                lr = tune.learning_rate(step)
                set_learning_rate(self.stepper.optimizer, lr)
                losses = self.stepper(batch)  # forward, losses, backward, one step of the optimiser
                log.add(step, lr, losses)
                step += 1

                due = clock.tick()
                if due.read:
                    log.flush()
                if due.save:
                    if self.recipe.detector.norm == "batch":
                        self._average_statistics()
                    self._list_bad()
                    self._save(step, evaluated=False)
                    if self._is_due(step):
                        self._evaluate(step, progress, workers)
                        self._save(step, evaluated=True)
                    clock.restart_minutes()

            log.close()
            self._list_bad()
            if first:
                self._close(progress, step, end)
        scores = read_scores(self.out)
        return DetectResult(self.out, step, step >= end, scores[-1]["scores"] if scores else {})

    def _batches(self, start: int, end: int, workers: int, *, stream: int = 0) -> Generator[DetectionBatch, None, None]:
        config, seed, processes = self.recipe.detector, self.recipe.tune.seed + stream, self.stepper.processes
        dataset = TrainingSet(self.data, self.recipe.images, seed, masks=config.masks, keypoints=config.keypoints)
        lying = np.array([record.width >= record.height for record in self.data.records])
        order = ShapeOrder(
            lying, self.recipe.tune.batch_size, seed=seed, start_step=start, end_step=end,
            rank=processes.rank, processes=processes.count,
        )  # fmt: skip
        pin = processes.device.type == "cuda"
        loader = make_loader(dataset, order, workers=workers, pin_memory=pin, join=collate_samples)
        return read_samples(loader)

    def _count_bad(self, batch: DetectionBatch) -> None:
        """Count and list what could not be decoded; too much of it stops the run."""
        bad = {file.path: file.reason for sample in batch.samples for file in sample.bad}
        try:
            self.bad_files.count(len(batch), bad)
        except UserError:
            bad_images.remember(self.out, "train", self.whole, self.bad_files.reasons)
            raise

    def _list_bad(self) -> None:
        """Bring the lists of files that cannot be decoded up to date. All processes must call it."""
        self.bad_files.write()
        if self.stepper.processes.first and self.bad_files.reasons:
            bad_images.remember(self.out, "train", self.whole, self.bad_files.reasons)

    @property
    def _every(self) -> int:
        """Steps from one evaluation to the next."""
        return min(self.run.eval_every or self.recipe.tune.steps, self.recipe.tune.steps)

    def _is_due(self, done: int) -> bool:
        """Whether an evaluation belongs after so many steps, or at the end at least precise statistics."""
        if self.val is None:
            return done == self.recipe.tune.steps and self.recipe.tune.precise_bn > 0
        return done % self._every == 0 or done == self.recipe.tune.steps

    def _average_statistics(self) -> None:
        """Where each process has running statistics of its own: their mean over the processes."""
        buffers = self.stepper.model.named_buffers()
        self.stepper.processes.average_([buffer for name, buffer in buffers if "running_" in name])

    def _evaluate(self, done: int, progress: Progress, workers: int) -> None:
        """Detect in all validation images, score, write it down. All processes must call it."""
        processes, stepper, config = self.stepper.processes, self.stepper, self.recipe.detector
        if self.recipe.tune.precise_bn:
            batches = self._batches(0, self.recipe.tune.precise_bn, workers, stream=_PRECISE_STREAM)
            recompute_statistics(stepper.model, stepper.look_at, batches)
            if config.norm == "batch":
                self._average_statistics()
        if self.val is None:
            return
        bad: dict[str, str] = {}
        with progress.show_bar(f"evaluation after step {done}", -(-len(self.val) // processes.count)) as seen:
            results = detect(
                stepper.model, self.val, processes, precision=stepper.precision, batch=self.run.eval_images,
                workers=workers, seen=seen, bad=bad,
            )  # fmt: skip
        self.bad_files.add(bad)
        if processes.first and bad:
            bad_images.remember(self.out, "val", self.val, bad)
        val, note = bad_images.scored_part(self.val, bad, self.run.max_bad_share)
        if processes.first:
            scores = official_scores(val, results, kinds_of(config))
            for line in [*([note] if note else ()), *lines(scores, val)]:
                progress.say(f"after step {done}: {line}")
            name, title = self.init, self.recipe.name
            write_evaluation(self.out, val, results, scores, step=done, name=name, title=title, go_on=True)

    def _save(self, done: int, *, evaluated: bool) -> None:
        if not self.stepper.processes.first:
            return
        state = detector_state(
            self.recipe, self.data, self.init, precision=self.stepper.precision, data=self.told, step=done,
            evaluated=evaluated, metadata=self.origin, model=self.stepper.model.state_dict(),
            optimizer=self.stepper.optimizer.state_dict(),
        )  # fmt: skip
        run_folder.save_state(self.out, state)

    def _close(self, progress: Progress, step: int, end: int) -> None:
        metrics = self.out / "metrics.jsonl"
        if metrics.exists() and metrics.stat().st_size:
            draw_curves(metrics, self.out / "curves.png", title=f"{self.recipe.name}, {self.init}")
        if self.bad_files.reasons:
            count, listed = len(self.bad_files.reasons), self.out / "bad_files.txt"
            what = "replaced in training, left out of evaluations"
            progress.say(f"{counted(count, 'file')} could not be decoded ({what}): see {listed}")
        if step < end:
            progress.say(f"stopped after step {step} of {end}, saved; go on with --out {self.out} --resume")
            return
        names = ("checkpoints/last.pt", "scores.jsonl", "results.json", "pictures/detections.png", "curves.png")
        progress.say("done: " + ", ".join(str(self.out / name) for name in names if (self.out / name).exists()))


def origin_of(weights: Weights | None, state: dict[str, Any] | None) -> dict[str, str]:
    """Licence and origin of the weights, or those that a checkpoint has of them."""
    if state is not None:
        return state.get("metadata", {})
    told = {} if weights is None else {"licence": weights.licence, "origin": weights.origin}
    if told.get("licence") is not None:
        told["licence_source"] = weights.licence_source if weights else None
    return {name: value for name, value in told.items() if value is not None}


def _stepper(
    recipe: DetectRecipe, run: DetectRun, data: DetectionData, weights: Weights | None, processes: Processes,
    precision: Any,
) -> tuple[DetectorStepper, InitReport]:  # fmt: skip
    model = build_detector(
        recipe.detector, recipe.images, num_classes=len(data.classes), num_keypoints=len(data.keypoint_names),
        processes=processes, seed=recipe.tune.seed,
    )  # fmt: skip
    report = load_init(model, recipe.detector, weights)
    freeze_parts(model, recipe.detector)
    stepper = make_detector_stepper(
        model, recipe.tune, processes, precision=precision, images_per_pass=run.images_per_pass
    )
    return stepper, report
