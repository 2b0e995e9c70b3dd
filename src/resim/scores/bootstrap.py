"""How sure an average precision is: COCO's AP of boxes under resampled images.

Shapes: I images, d detections and T = 10 IoU thresholds of a class.
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
_DRAWS_OF_T = 200  # for each draw of images


@dataclass(frozen=True, kw_only=True)
class ClassMatches:
    """What COCO's evaluation found of a class, by falling score.

    Attributes:
        images: (d,) int64, the position of each detection's image.
        right: for each IoU threshold the positions, rising, of the detections that found an object.
        aside: for each IoU threshold the positions, rising, of those that count neither as right nor as wrong.
        objects: (I,) float64, objects to find in each image.
    """

    images: np.ndarray
    right: tuple[np.ndarray, ...]
    aside: tuple[np.ndarray, ...]
    objects: np.ndarray


def match(data: DetectionData, results: Sequence[dict[str, Any]], kind: Kind = "bbox") -> list[ClassMatches]:
    """Match detections to the truth as COCO's evaluation does, once; a list of classes.

    Objects marked difficult are set aside like crowd regions.

    Args:
        data: the truth.
        results: in the form of COCO results, of this data.
        kind: what is compared.
    """
    evaluation = coco_evaluation(data, results, kind, difficult_aside=True)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
    params: Any = evaluation.params
    num_images, num_areas = len(params.imgIds), len(params.areaRng)
    classes = []
    for at in range(len(params.catIds)):
        start = at * num_areas * num_images  # of all sizes, which come first
        found: list[Any] = evaluation.evalImgs[start : start + num_images]
        parts = [(image, entry) for image, entry in enumerate(found) if entry is not None]
        objects = np.zeros(num_images)
        for image, entry in parts:
            objects[image] = (np.asarray(entry["gtIgnore"]) == 0).sum()
        if not objects.any():
            continue
        scores = np.concatenate([np.asarray(entry["dtScores"], dtype=np.float64) for _, entry in parts])
        images = np.concatenate([np.full(len(entry["dtScores"]), image) for image, entry in parts])
        hit = np.concatenate([np.asarray(entry["dtMatches"]) > 0 for _, entry in parts], axis=1)
        aside = np.concatenate([np.asarray(entry["dtIgnore"]).astype(bool) for _, entry in parts], axis=1)
        order = np.argsort(-scores, kind="mergesort")
        classes.append(
            ClassMatches(
                images=images[order].astype(np.int64),
                right=tuple(np.flatnonzero(row) for row in (hit & ~aside)[:, order]),
                aside=tuple(np.flatnonzero(row) for row in aside[:, order]),
                objects=objects,
            )
        )
    return classes


def average_precision(classes: Sequence[ClassMatches], weights: np.ndarray) -> float:
    """COCO's AP over the images, each as often as its weight says.

    Args:
        classes: from `match`.
        weights: (I,) numbers of times, at least 0; all 1: the AP of COCOeval.

    Returns:
        Mean over classes that have an object and over IoU thresholds; NaN if there is none.
    """
    values = []
    for one in classes:
        total = float(one.objects @ weights)
        if total == 0:
            continue
        each = weights[one.images]
        seen = np.cumsum(each)
        for right, aside in zip(one.right, one.aside, strict=True):
            # precision is greatest, and recall rises, only where an object is found: no other place is looked at
            found = np.cumsum(each[right])
            passed_over = np.concatenate(([0.0], np.cumsum(each[aside])))[np.searchsorted(aside, right)]
            precision = found / np.maximum(seen[right] - passed_over, np.finfo(np.float64).tiny)
            envelope = np.maximum.accumulate(precision[::-1])[::-1]
            places = np.searchsorted(found / total, _RECALLS, side="left")
            values.append(envelope[places[places < len(envelope)]].sum() / len(_RECALLS))
    return float(np.mean(values)) if values else float("nan")


def resampled(classes: Sequence[ClassMatches], images: int, *, replicates: int, seed: int) -> np.ndarray:
    """(replicates,) float64: a run's AP under draws of images with replacement, the same draws for the same seed.

    Args:
        classes: from `match`.
        images: I.
        replicates: number of draws.
        seed: of the draws.
    """
    generator = np.random.default_rng([7, seed])
    draws = generator.multinomial(images, np.full(images, 1 / images), size=replicates).astype(np.float64)
    return np.array([average_precision(classes, weights) for weights in draws])


def paired_interval(first: np.ndarray, second: np.ndarray, *, seed: int) -> tuple[float, float]:
    """A 95 % interval of the difference of two means over seeds: over draws of images and, by Student's t, over seeds.

    Two or three seeds are too few to be resampled: an interval between the least and the greatest of them leaves the
    true difference out half of the time with two, a quarter of the time with three.

    Args:
        first: (seeds, replicates), a row from `resampled` of each seed.
        second: of the same seeds, under the same draws of images.
        seed: of the draws.

    Returns:
        Low and high end. Of one seed they are over images alone.
    """
    differences = first - second
    means, seeds = differences.mean(axis=0), len(differences)
    if seeds > 1:
        error = differences.mean(axis=1).std(ddof=1) / np.sqrt(seeds)
        generator = np.random.default_rng([8, seed])
        means = means + error * generator.standard_t(seeds - 1, size=(_DRAWS_OF_T, len(means)))
    low, high = np.nanpercentile(means, [2.5, 97.5])
    return float(low), float(high)
