"""The evaluation of a detector while it is trained: precise statistics, detections, scores, what is written."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence

from resim.detection import bad_images
from resim.detection.evaluate import kinds_of, lines, official_scores, write_evaluation
from resim.detection.norms import recompute_statistics
from resim.detection.predict import detect
from resim.detection.samples import DetectionBatch
from resim.detection.step import DetectorStepper
from resim.detection.tuning import Tuning, load_batches
from resim.runs.bad_files import BadFiles
from resim.runs.pictures import Pictures
from resim.runs.progress import Progress
from resim.views.waiting import StalledError, has_given_up

_PRECISE_STREAM = 1  # added to the seed: the batches for statistics are others than those trained on


def validate(
    tuning: Tuning, step: int, progress: Progress, bad_files: BadFiles, pictures: Pictures, signals: Sequence[int]
) -> None:  # fmt: skip
    """Detect in all validation images, score the detections and write the scores. All processes must call it.

    Args:
        tuning: the detector and what it is evaluated on; without that, only precise statistics are computed.
        step: steps done.
        progress: shows a bar, and then the scores.
        bad_files: takes the images that cannot be decoded.
        pictures: of this training.
        signals: the list of `catch_termination`.

    Raises:
        StalledError: one of `signals` has ended it where a loader hangs; nothing is written, and the statistics are not
            those of before.
        UserError: too many images that cannot be decoded.
    """
    stepper, config, run = tuning.stepper, tuning.recipe.detector, tuning.run
    processes = stepper.processes
    if tuning.recipe.tune.precise_bn:
        recompute_statistics(stepper.model, stepper.forward, _precise_batches(tuning, signals))
        average_statistics(tuning)
    if tuning.val is None:
        return
    bad: dict[str, str] = {}
    num_images = -(-len(tuning.val) // processes.count)
    with progress.show_bar(f"evaluation after step {step}", num_images) as report:
        results = detect(
            stepper.model, tuning.val, processes, precision=stepper.precision, batch=run.eval_images,
            workers=tuning.workers, report=report, bad=bad, signals=signals,
        )  # fmt: skip
    bad_files.add(bad)
    if processes.first and bad:
        bad_images.remember(tuning.out, "val", tuning.val, bad)
    val, note = bad_images.scored_part(tuning.val, bad, run.max_bad_share)
    if not processes.first:
        return
    scores = official_scores(val, results, kinds_of(config))
    for line in [*([note] if note else ()), *lines(scores, val)]:
        progress.say(f"after step {step}: {line}")
    write_evaluation(
        tuning.out, val, results, scores, step=step, name=tuning.init, title=tuning.recipe.name, go_on=True,
        pictures=pictures,
    )  # fmt: skip


def _precise_batches(tuning: Tuning, signals: Sequence[int]) -> Iterator[DetectionBatch]:
    """The batches for precise statistics, on this process.

    Raises:
        StalledError: one of `signals` has ended them, on any process.
    """
    number = tuning.recipe.tune.precise_bn
    with contextlib.closing(load_batches(tuning, 0, number, stream=_PRECISE_STREAM, signals=signals)) as batches:
        for batch in itertools.islice(batches, number):
            if has_given_up(tuning.stepper.processes, batch) or batch is None:
                raise StalledError("a signal has ended the statistics, since an image is not read")
            yield batch


def average_statistics(tuning: Tuning) -> None:
    """Average BatchNorm's running statistics over the processes, where each has its own. All processes must call it."""
    if tuning.recipe.detector.norm == "batch":
        stepper: DetectorStepper = tuning.stepper
        stepper.processes.average_([buffer for name, buffer in stepper.model.named_buffers() if "running_" in name])
