"""What a fine-tuning needs before its first step: data, weights, the run's folder, the detector and its optimiser."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resim.datasets.records import DetectionData
from resim.detection import bad_images
from resim.detection.checkpoint import check_same_run
from resim.detection.config import DetectRecipe, DetectRun
from resim.detection.detector import build_detector
from resim.detection.freeze import freeze_parts
from resim.detection.init import InitReport, leaves_open, load_init, resolve
from resim.detection.left_out import left_out
from resim.detection.prepare import check_tasks, fingerprint, usable, weights_fingerprint, with_classes_of
from resim.detection.samples import DetectionBatch, ShapeOrder, TrainingSet, collate_samples, read_samples
from resim.detection.step import DetectorStepper, make_detector_stepper
from resim.distributed.processes import Processes
from resim.errors import UserError
from resim.exchange.sources import is_at_hand, is_untrained, untrained_model
from resim.exchange.weights import Weights, read_weights
from resim.runs import folder as run_folder
from resim.runs.lock import WAIT_SECONDS, lock_folder
from resim.runs.resume import has_checkpoint, read_resumed
from resim.training.precision import choose_precision
from resim.training.starting import download_once
from resim.views.loader import make_loader


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """A fine-tuning that can take its next step."""

    recipe: DetectRecipe
    """With what the weights decide, such as the backbone."""
    run: DetectRun
    out: Path
    """The run's folder."""
    data: DetectionData
    """What is trained on."""
    read_data: DetectionData
    """The same as it was read, with the images that the recipe leaves out."""
    val: DetectionData | None
    """What is evaluated on."""
    stepper: DetectorStepper
    step: int
    """Steps done."""
    is_resumed: bool
    """Whether the run continues from a checkpoint."""
    notes: tuple[str, ...]
    """What is missing or damaged in the folder of a run that continues, to print."""
    is_evaluated: bool
    """Whether the evaluation that is due after `step` has been written."""
    init: str
    """The weights to begin with, as the user names them."""
    init_report: InitReport
    """Which of its weights were loaded, and which are new."""
    origin: dict[str, str]
    """Licence and origin of these weights, which go with what is made of them."""
    described_data: dict[str, Any]
    """What config.json and checkpoints say of the data."""
    not_learnt: list[str]
    """Lines on what is left out of the training."""
    num_lost: int
    """Images that could not be decoded and have been taken out of the data since the run began."""

    @property
    def end(self) -> int:
        """Steps in all."""
        return self.recipe.tune.steps

    @property
    def workers(self) -> int:
        """Loader processes."""
        return self.run.workers if self.run.workers >= 0 else min(self.stepper.processes.cores, 16)

    @property
    def eval_every(self) -> int:
        """Steps from one evaluation to the next."""
        return min(self.run.eval_every or self.end, self.end)

    def is_evaluation_due(self, step: int) -> bool:
        """Whether an evaluation, or at the end at least precise statistics, belongs after so many steps."""
        if self.val is None:
            return step == self.end and self.recipe.tune.precise_bn > 0
        return step % self.eval_every == 0 or step == self.end


def prepare_tuning(
    recipe: DetectRecipe,
    run: DetectRun,
    data: DetectionData,
    val: DetectionData | None,
    init: str,
    processes: Processes,
    resources: contextlib.ExitStack,
) -> Tuning:
    """Read the weights, open or resume the run's folder, build the detector.

    Args:
        recipe: as `train_detector`.
        run: likewise.
        data: likewise.
        val: likewise.
        init: likewise.
        processes: that take part; all must call it.
        resources: keeps the folder's lock.

    Raises:
        UserError: as `train_detector`.
    """
    if recipe.tune.batch_size % processes.count:
        raise UserError(
            f"a batch of {recipe.tune.batch_size} cannot be shared among {processes.count} processes: "
            "set --batch-size to a multiple"
        )
    resume = run_folder.should_resume(run.out, run.resume)
    if run.out is not None:
        run_folder.check_folder(run.out, resume=resume)
    recipe, weights = _recipe_and_weights(recipe, run, init, processes, resume=resume)
    check_tasks(recipe.detector, data)
    not_learnt = left_out(data, recipe)
    read_data, data = data, usable(data, recipe)
    val = None if val is None else with_classes_of(val, data.classes, data.category_ids, data.source)

    out = Path(processes.gather_objects(run.out or run_folder.default_folder(recipe))[0])
    resources.enter_context(lock_folder(out, processes, wait=WAIT_SECONDS if run.resume else 0.0))
    # again: a run that had the lock may have begun and ended meanwhile
    resume = processes.gather_objects(run_folder.should_resume(run.out, run.resume))[0]
    run_folder.check_run(out, recipe, resume=resume)
    resumed = None
    if resume:
        first_save = run_folder.stored_setting(out, "eval_every") or recipe.tune.steps
        resumed = read_resumed(out, recipe, processes, start=0, first_save=first_save, end=recipe.tune.steps)
    state = resumed.state if resumed else None
    precision = state["precision"] if state else choose_precision(run.precision, processes.device)
    precision = processes.gather_objects(precision)[0]

    num_lost = 0
    if state and fingerprint(data) != state["data"]["hash"]:
        read_data, before = bad_images.put_back(out, "train", read_data), len(read_data)
        data, num_lost = usable(read_data, recipe), len(read_data) - before
    if state and val is not None and fingerprint(val) != state["data"]["val_hash"]:
        val, before = bad_images.put_back(out, "val", val), len(val)
        num_lost += len(val) - before
    described = _description(data, val, weights)
    if state:
        check_same_run(state, described, init)
        described["init_hash"] = state["data"]["init_hash"]

    stepper, report = _make_stepper(recipe, run, data, weights, processes, precision)
    if state:
        stepper.model.load_state_dict(state["model"])
        stepper.optimizer.load_state_dict(state["optimizer"])
        if processes.first and resumed:
            run_folder.record_resume(out, resumed)
    elif processes.first:
        resolved = dataclasses.replace(run, out=out, device=processes.device.type, precision=precision)
        run_folder.write_config(
            out, recipe, resolved, described, kind="detect", init=init, processes=processes.count,
            classes=data.classes, weights=dataclasses.asdict(report),
        )  # fmt: skip
    return Tuning(
        recipe=recipe, run=run, out=out, data=data, read_data=read_data, val=val, stepper=stepper,
        step=state["step"] if state else 0, is_resumed=state is not None,
        notes=resumed.lines if resumed else (),
        is_evaluated=state is None or state["evaluated"], init=init, init_report=report,
        origin=origin_of(weights, state), described_data=described, not_learnt=not_learnt, num_lost=num_lost,
    )  # fmt: skip


def load_batches(
    tuning: Tuning, start: int, end: int, *, stream: int = 0, signals: Sequence[int] = ()
) -> Generator[DetectionBatch | None, None, None]:
    """The training batches of some steps, on this process; another stream has other images, flips and sizes.

    None comes after those that are read before one of `signals` ends the run.
    """
    recipe, processes = tuning.recipe, tuning.stepper.processes
    seed = recipe.tune.seed + stream
    dataset = TrainingSet(
        tuning.data, recipe.images, seed, masks=recipe.detector.masks, keypoints=recipe.detector.keypoints
    )
    is_wide = np.array([record.width >= record.height for record in tuning.data.records])
    order = ShapeOrder(
        is_wide, recipe.tune.batch_size, seed=seed, start_step=start, end_step=end, rank=processes.rank,
        processes=processes.count,
    )  # fmt: skip
    pin_memory = processes.device.type == "cuda"
    loader = make_loader(dataset, order, workers=tuning.workers, pin_memory=pin_memory, join=collate_samples)
    yield from read_samples(loader, signals)
    yield None


def origin_of(weights: Weights | None, state: dict[str, Any] | None) -> dict[str, str]:
    """Licence and origin of the weights, or those that a checkpoint records."""
    if state is not None:
        return state.get("metadata", {})
    origin = {} if weights is None else {"licence": weights.licence, "origin": weights.origin}
    if origin.get("licence") is not None:
        origin["licence_source"] = weights.licence_source if weights else None
    return {name: value for name, value in origin.items() if value is not None}


def _recipe_and_weights(
    recipe: DetectRecipe, run: DetectRun, init: str, processes: Processes, *, resume: bool
) -> tuple[DetectRecipe, Weights | None]:
    """The recipe with what the weights to begin with decide, and these weights where they are read."""
    is_open = leaves_open(recipe.detector)
    has_state = resume and run.out is not None and has_checkpoint(run.out)
    # a resumed run needs its weights no more, but they are compared where they still exist
    is_read = not is_untrained(init) and (is_open or not has_state or is_at_hand(init))
    if is_read:
        download_once(init, processes)
    weights = read_weights(init) if is_read else None
    model = untrained_model(init) if is_untrained(init) else None
    return dataclasses.replace(recipe, detector=resolve(recipe.detector, weights, model)), weights


def _description(data: DetectionData, val: DetectionData | None, weights: Weights | None) -> dict[str, Any]:
    described: dict[str, Any] = {"source": data.source, "images": len(data), "objects": data.num_objects}
    described |= {"hash": fingerprint(data), "val": None if val is None else val.source}
    described |= {"val_hash": None if val is None else fingerprint(val)}
    if val is not None and val.held_out is not None:
        described |= {"split": val.held_out.to_json()}
    return described | {"init_hash": None if weights is None else weights_fingerprint(weights)}


def _make_stepper(
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
