"""Confidence intervals of average precision: COCO's AP over resampled images.

Shapes: I images; d detections and T = 10 IoU thresholds of a class.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from resim.datasets.records import DetectionData
from resim.scores.coco import coco_evaluation
from resim.scores.results import Kind

_RECALLS = np.linspace(0.0, 1.0, 101)  # COCO's
_SAMPLES_OF_T = 200  # for each sample of images


@dataclass(frozen=True, kw_only=True)
class ClassMatches:
    """The detections of a class as matched by COCO's evaluation, by descending score.

    Attributes:
        images: (d,) int64, the index of each detection's image.
        right: T arrays of ascending indices, the detections that match an object at each IoU threshold.
        ignored: T arrays of ascending indices, the detections that count neither as right nor as wrong.
        num_objects: (I,) float64, the objects to detect in each image.
    """

    images: np.ndarray
    right: tuple[np.ndarray, ...]
    ignored: tuple[np.ndarray, ...]
    num_objects: np.ndarray


def match_detections(data: DetectionData, results: Sequence[dict[str, Any]], kind: Kind = "bbox") -> list[ClassMatches]:
    """Match detections to the ground truth once, as COCO's evaluation does.

    Objects marked difficult are ignored like crowd regions.

    Args:
        data: the ground truth.
        results: detections in this data, in the form of COCO results.
        kind: boxes, masks or keypoints.

    Returns:
        The matches of each class that has an object.
    """
    evaluation = coco_evaluation(data, results, kind, ignore_difficult=True)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
    params: Any = evaluation.params
    num_images, num_areas = len(params.imgIds), len(params.areaRng)
    classes = []
    for index in range(len(params.catIds)):
        start = index * num_areas * num_images  # the range of all sizes is the first
        entries: list[Any] = evaluation.evalImgs[start : start + num_images]
        parts = [(image, entry) for image, entry in enumerate(entries) if entry is not None]
        num_objects = np.zeros(num_images)
        for image, entry in parts:
            num_objects[image] = (np.asarray(entry["gtIgnore"]) == 0).sum()
        if not num_objects.any():
            continue
        scores = np.concatenate([np.asarray(entry["dtScores"], dtype=np.float64) for _, entry in parts])
        images = np.concatenate([np.full(len(entry["dtScores"]), image) for image, entry in parts])
        matched = np.concatenate([np.asarray(entry["dtMatches"]) > 0 for _, entry in parts], axis=1)
        ignored = np.concatenate([np.asarray(entry["dtIgnore"]).astype(bool) for _, entry in parts], axis=1)
        order = np.argsort(-scores, kind="mergesort")
        classes.append(
            ClassMatches(
                images=images[order].astype(np.int64),
                right=tuple(np.flatnonzero(row) for row in (matched & ~ignored)[:, order]),
                ignored=tuple(np.flatnonzero(row) for row in ignored[:, order]),
                num_objects=num_objects,
            )
        )
    return classes


def average_precision(classes: Sequence[ClassMatches], weights: np.ndarray) -> float:
    """COCO's AP over the images, each repeated as often as its weight.

    Args:
        classes: from `match_detections`.
        weights: (I,) number of times of each image, at least 0. All 1: the AP of COCOeval.

    Returns:
        Mean over the IoU thresholds and the classes with an object; NaN if there is none.
    """
    values = []
    for matches in classes:
        num_objects = float(matches.num_objects @ weights)
        if num_objects == 0:
            continue
        counts = weights[matches.images]
        num_detections = np.cumsum(counts)
        for right, ignored in zip(matches.right, matches.ignored, strict=True):
            # recall increases, and precision has its maxima, only at matched detections: the others are not needed
            num_right = np.cumsum(counts[right])
            num_ignored = np.concatenate(([0.0], np.cumsum(counts[ignored])))[np.searchsorted(ignored, right)]
            precision = num_right / np.maximum(num_detections[right] - num_ignored, np.finfo(np.float64).tiny)
            envelope = np.maximum.accumulate(precision[::-1])[::-1]
            indices = np.searchsorted(num_right / num_objects, _RECALLS, side="left")
            values.append(envelope[indices[indices < len(envelope)]].sum() / len(_RECALLS))
    return float(np.mean(values)) if values else float("nan")


def resample_precision(classes: Sequence[ClassMatches], num_images: int, *, replicates: int, seed: int) -> np.ndarray:
    """(replicates,) float64 AP of a run over images sampled with replacement; one seed always gives the same samples.

    Args:
        classes: from `match_detections`.
        num_images: I.
        replicates: number of samples.
        seed: of the samples.
    """
    generator = np.random.default_rng([7, seed])
    samples = generator.multinomial(num_images, np.full(num_images, 1 / num_images), size=replicates)
    return np.array([average_precision(classes, weights) for weights in samples.astype(np.float64)])


def paired_interval(first: np.ndarray, second: np.ndarray, *, seed: int) -> tuple[float, float]:
    """A 95 % interval of the difference of two means over seeds, by sampled images and Student's t over the seeds.

    Two or three seeds are too few to be resampled: the interval from the smallest to the largest value misses the true
    difference half of the time with two seeds, and a quarter of the time with three.

    Args:
        first: (seeds, replicates), for each seed a row from `resample_precision`.
        second: the same of the other runs, with the same seeds and samples of images.
        seed: of the samples of t.

    Returns:
        Lower and upper bound. With one seed they are over the images alone.
    """
    differences = first - second
    means, num_seeds = differences.mean(axis=0), len(differences)
    if num_seeds > 1:
        error = differences.mean(axis=1).std(ddof=1) / np.sqrt(num_seeds)
        generator = np.random.default_rng([8, seed])
        means = means + error * generator.standard_t(num_seeds - 1, size=(_SAMPLES_OF_T, len(means)))
    low, high = np.nanpercentile(means, [2.5, 97.5])
    return float(low), float(high)
