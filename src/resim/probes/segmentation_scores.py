"""Scores of predicted label maps: mIoU, mean accuracy and foreground IoU, with bootstrap intervals over images.

Shapes: N images, K classes, B bootstrap samples.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from resim.probes.label_maps import VOID

Measure = Literal["miou", "mean_accuracy", "foreground_iou"]
MEASURES: tuple[Measure, ...] = ("miou", "mean_accuracy", "foreground_iou")
_SAMPLES = 2000


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Predictions of a probe on N test images."""

    confusion: np.ndarray
    """(N, K, K) int32, pixels of each image by true class, then by predicted class; void pixels are ignored."""
    examples: np.ndarray
    """(E, S, S) int16, predicted maps of the example images."""
    details: dict[str, Any] = field(default_factory=dict)
    """Settings and state of the probe, for probe.json."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmentation:
    """Agreement of predicted and true label maps on N test images.

    The mean is over the classes that occur in the true labels of the test images. In a bootstrap sample without one of
    these classes, the class keeps its value over all images, so every sample averages the same classes.
    """

    confusion: np.ndarray
    """(N, K, K) int32, as in `Predictions`."""
    classes: tuple[str, ...]
    background: int | None
    """Index of the background in `classes`; None: there is none."""
    examples: np.ndarray | None = None
    """(E, S, S) int16, predicted maps of the example images."""

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """(N, 3, K) int64, pixels where class k is both true and predicted, is true, and is predicted."""
        return np.stack(
            [self.confusion.diagonal(axis1=1, axis2=2), self.confusion.sum(axis=2), self.confusion.sum(axis=1)], axis=1
        ).astype(np.int64)

    def value(self, measure: Measure = "miou") -> float:
        """The measure over all pixels of all images; NaN if it is not defined."""
        return float(self._measure_sums(self.counts.sum(axis=0)[None], measure)[0])

    def interval(self, measure: Measure = "miou") -> tuple[float, float]:
        """95 % bootstrap interval over images."""
        return _percentiles(self.bootstrap(measure))

    def class_ious(self) -> dict[str, float]:
        """IoU of each class that occurs in the true labels."""
        both, true, predicted = self.counts.sum(axis=0)
        return {
            name: float(both[k] / (true[k] + predicted[k] - both[k])) for k, name in enumerate(self.classes) if true[k]
        }

    @property
    def constant(self) -> float:
        """mIoU of the best constant prediction, the most frequent class everywhere."""
        true = self.counts[:, 1].sum(axis=0)
        return float(true.max() / true.sum() / (true > 0).sum())

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        measures: dict[str, Any] = {}
        for measure in MEASURES:
            if measure != "foreground_iou" or self.background is not None:
                ends = [_plain(end) for end in self.interval(measure)]
                measures |= {measure: _plain(self.value(measure)), f"{measure}_interval": ends}
        return measures | {
            "interval": measures["miou_interval"],
            "constant": self.constant,
            "class_iou": self.class_ious(),
            "n": len(self.confusion),
            "pixels": int(self.confusion.sum()),
        }

    def bootstrap(self, measure: Measure) -> np.ndarray:
        """The measure of bootstrap samples of the images, the same samples for every network: (B,)."""
        shape = self.counts.shape[1:]
        sums = bootstrap_weights(len(self.counts)) @ self.counts.reshape(len(self.counts), -1).astype(np.float64)
        return self._measure_sums(sums.reshape(-1, *shape), measure)

    def _measure_sums(self, sums: np.ndarray, measure: Measure) -> np.ndarray:
        """The measure (B,) of counts summed over images (B, 3, K)."""
        return measure_sums(sums, self.counts.sum(axis=0), measure, self.background)


def measure_sums(sums: np.ndarray, total: np.ndarray, measure: Measure, background: int | None) -> np.ndarray:
    """The measure of each bootstrap sample.

    Args:
        sums: (B, 3, K), `Segmentation.counts` summed over the images of each sample.
        total: (3, K), the sum over all images; the classes that occur in it are averaged.
        measure: to compute.
        background: index of the background; None: the foreground IoU is NaN.

    Returns:
        (B,).
    """
    both, true, predicted = np.moveaxis(sums.astype(np.float64), 1, 0)
    if measure == "foreground_iou":
        if background is None:
            return np.full(len(sums), np.nan)
        union = true.sum(axis=1) - both[:, background]
        shared = true.sum(axis=1) - true[:, background] - predicted[:, background] + both[:, background]
        return _ratio(shared, union)
    scores = _class_scores(both, true, predicted, measure)
    total_scores = _class_scores(total[0], total[1], total[2], measure)
    filled = np.where(np.isfinite(scores), scores, total_scores)[:, np.isfinite(total_scores)]
    return filled.mean(axis=1) if filled.shape[1] else np.full(len(sums), np.nan)


def difference(a: Segmentation, b: Segmentation, measure: Measure = "miou") -> tuple[float, float, float] | None:
    """The measure of `a` minus that of `b`, with its 95 % bootstrap interval; None if the images or classes differ."""
    if a.classes != b.classes or not np.array_equal(a.counts[:, 1], b.counts[:, 1]):
        return None
    low, high = _percentiles(a.bootstrap(measure) - b.bootstrap(measure))
    return a.value(measure) - b.value(measure), low, high


@functools.lru_cache(maxsize=2)
def bootstrap_weights(num_images: int) -> np.ndarray:
    """How many times each image occurs in each sample, the same for the same number of images: (B, N)."""
    probabilities = np.full(num_images, 1 / num_images)
    return np.random.default_rng(0).multinomial(num_images, probabilities, size=_SAMPLES).astype(np.float64)


def confusions(truth: Tensor, predicted: Tensor, num_classes: int) -> np.ndarray:
    """Confusion matrices (n, K, K) int32 of true and predicted maps, (n, S, S) each; void pixels are ignored."""
    known = truth != VOID
    image = torch.arange(len(truth), device=truth.device)[:, None, None].expand_as(truth)
    index = ((image * num_classes + truth.long()) * num_classes + predicted.long())[known]
    counts = torch.bincount(index, minlength=len(truth) * num_classes**2)
    return counts.view(len(truth), num_classes, num_classes).cpu().numpy().astype(np.int32)


def _class_scores(both: np.ndarray, true: np.ndarray, predicted: np.ndarray, measure: Measure) -> np.ndarray:
    """IoU or accuracy of each class; NaN for a class that does not occur in the true labels."""
    denominator = true + predicted - both if measure == "miou" else true
    return _ratio(both, np.where(true > 0, denominator, 0))


def _plain(value: float) -> float | None:
    """A number for JSON, which cannot represent NaN."""
    return value if np.isfinite(value) else None


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    result = np.full(np.shape(numerator), np.nan)
    return np.divide(numerator, denominator, out=result, where=np.asarray(denominator) > 0)


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of the finite values."""
    known = values[np.isfinite(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)
