"""Scores of a detector, or of a results file, by the official evaluation of a data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from resim.counts import counted
from resim.datasets.records import DetectionData
from resim.detection.bad_images import scored_part
from resim.detection.checkpoint import load_detector
from resim.detection.evaluate import kinds_of, lines, official_scores, write_evaluation
from resim.detection.held_out import part_to_score
from resim.detection.left_out import copies, not_scored
from resim.detection.predict import detect
from resim.detection.prepare import with_classes_of
from resim.distributed.processes import start_processes
from resim.runs.bad_files import BadFiles
from resim.scores.results import Kind, Scores, check_masks, match_ids, read_results, result_kinds
from resim.views.workers import report_killed_workers


def score_results(results: Path, data: DetectionData, out: Path | None = None) -> dict[str, Scores]:
    """Score a COCO results file, and print the scores.

    Args:
        results: the file.
        data: the truth.
        out: folder for the scores and a picture; None: they are only printed.

    Returns:
        The scores by kind; on processes but the first nothing.

    Raises:
        UserError: a file that cannot be read, is of other data, or has nothing that can be scored.
    """
    with start_processes("cpu") as processes:
        if not processes.first:
            return {}
        for line in data.repairs.lines():
            print(line)
        entries = match_ids(read_results(results), data)
        check_masks(entries, str(results))
        num_images = len({str(entry.get("image_id")) for entry in entries})
        print(f"{counted(len(entries), 'detection')} in {num_images} of {counted(len(data), 'image')}")
        return _score(data, entries, result_kinds(entries), out, source=str(results), name=results.name, step=0)


def score_detector(
    model: Path,
    data: DetectionData,
    out: Path | None = None,
    *,
    all_images: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    batch: int = 1,
    workers: int = 2,
    max_bad_share: float = 0.1,
) -> dict[str, Scores]:
    """Detect in all images of a data set, score the detections, and print the scores.

    Args:
        model: a fine-tuning's folder or checkpoint.
        data: the truth.
        out: folder for the scores, the detections and a picture; None: the scores are only printed.
        all_images: score all images, those too that the detector's run was trained on.
        device: where to compute.
        batch: images that are detected in together.
        workers: processes that decode images.
        max_bad_share: of the images that may be undecodable; these do not count.

    Returns:
        The scores by kind; on processes but the first nothing.

    Raises:
        UserError: no detector, data of other classes, or too many images that cannot be decoded, or a worker process
            that was killed.
    """
    with start_processes(device) as processes:
        detector = load_detector(model, processes.device)
        data = with_classes_of(data, detector.classes, detector.category_ids, detector.source)
        repairs = data.repairs
        if not all_images:
            data, note = part_to_score(data, model, detector.recipe)
            if processes.first and note:
                print(note)
        for line in repairs.lines() if processes.first else ():
            print(line)
        bad: dict[str, str] = {}
        with report_killed_workers():
            results = detect(
                detector.model, data, processes, precision=detector.precision, batch=batch, workers=workers, bad=bad
            )
        if processes.first and out is not None and bad:
            BadFiles(out, processes, max_bad_share).add(bad)
        data, note = scored_part(dataclasses.replace(data, repairs=repairs), bad, max_bad_share)
        if not processes.first:
            return {}
        if note:
            print(note)
        kinds = kinds_of(detector.recipe.detector)
        return _score(data, results, kinds, out, source=detector.source, name=model.name, step=detector.step)


def _score(
    data: DetectionData, results: Sequence[dict[str, Any]], kinds: Sequence[Kind], out: Path | None, *, source: str,
    name: str, step: int,
) -> dict[str, Scores]:  # fmt: skip
    for line in [*not_scored(data, masks="segm" in kinds, keypoints="keypoints" in kinds), *copies(data)]:
        print(line)
    scores = official_scores(data, results, kinds, source=source)
    for line in lines(scores, data):
        print(line)
    if out is not None:
        write_evaluation(out, data, results, scores, step=step, name=name, title=data.source)
        print(out)
    return scores
