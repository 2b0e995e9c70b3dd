"""How well predicted label maps agree with the true ones: mIoU and its kin, with exact bootstraps over images.

Shapes: N images, K classes, B bootstrap draws.
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
_DRAWS = 2000


@dataclass(frozen=True, kw_only=True, eq=False)
class Predicted:
    """What a probe answered about N test images."""

    confusion: np.ndarray
    """(N, K, K) int32: pixels of each image by true class, then by predicted class. Void pixels count nowhere."""
    examples: np.ndarray
    """(E, S, S) int16: predictions of the images that were asked for."""
    details: dict[str, Any] = field(default_factory=dict)
    """How it was come by."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmentation:
    """Agreement of predicted with true label maps on N test images.

    Classes are averaged that occur in the true labels of the test images, in bootstrap draws too: a rare class that a
    draw lacks keeps its value over all images, so that the average is always one over the same classes.
    """

    confusion: np.ndarray
    """(N, K, K) int32, as in `Predicted`."""
    classes: tuple[str, ...]
    background: int | None
    """Position of the background in `classes`."""
    examples: np.ndarray | None = None
    """(E, S, S) int16: predictions for a picture."""

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """(N, 3, K) int64: pixels where class k is true and predicted, is true, is predicted."""
        return np.stack(
            [self.confusion.diagonal(axis1=1, axis2=2), self.confusion.sum(axis=2), self.confusion.sum(axis=1)], axis=1
        ).astype(np.int64)

    def value(self, measure: Measure = "miou") -> float:
        """The measure over all pixels of all images; NaN where it is not defined."""
        return float(self._measured(self.counts.sum(axis=0)[None], measure)[0])

    def interval(self, measure: Measure = "miou") -> tuple[float, float]:
        """95 % bootstrap interval, images drawn with replacement."""
        return _ends(self._drawn(measure))

    def class_ious(self) -> dict[str, float]:
        """IoU of each class that occurs in the true labels."""
        both, true, predicted = self.counts.sum(axis=0)
        return {
            name: float(both[k] / (true[k] + predicted[k] - both[k])) for k, name in enumerate(self.classes) if true[k]
        }

    @property
    def constant(self) -> float:
        """mIoU of the best constant answer: the most frequent class everywhere."""
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

    def _drawn(self, measure: Measure) -> np.ndarray:
        """(B,) the measure of bootstrap draws, the same draws for every network."""
        shape = self.counts.shape[1:]
        sums = bootstrap_weights(len(self.counts)) @ self.counts.reshape(len(self.counts), -1).astype(np.float64)
        return self._measured(sums.reshape(-1, *shape), measure)

    def _measured(self, sums: np.ndarray, measure: Measure) -> np.ndarray:
        """(B, 3, K) sums over images -> (B,)."""
        return measure_sums(sums, self.counts.sum(axis=0), measure, self.background)


def measure_sums(sums: np.ndarray, total: np.ndarray, measure: Measure, background: int | None) -> np.ndarray:
    """The measure of bootstrap draws.

    Args:
        sums: (B, 3, K), `Segmentation.counts` summed over the images of each draw.
        total: (3, K), the sum over all images, whose classes are averaged.
        measure: which.
        background: position of the background; without one the foreground IoU is NaN.

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
    shares = _class_shares(both, true, predicted, measure)
    whole = _class_shares(total[0], total[1], total[2], measure)
    kept = np.where(np.isfinite(shares), shares, whole)[:, np.isfinite(whole)]
    return kept.mean(axis=1) if kept.shape[1] else np.full(len(sums), np.nan)


def difference(a: Segmentation, b: Segmentation, measure: Measure = "miou") -> tuple[float, float, float] | None:
    """The measure of `a` minus that of `b`, with its 95 % bootstrap interval; None: they are not of the same images."""
    if a.classes != b.classes or not np.array_equal(a.counts[:, 1], b.counts[:, 1]):
        return None
    low, high = _ends(a._drawn(measure) - b._drawn(measure))
    return a.value(measure) - b.value(measure), low, high


@functools.lru_cache(maxsize=2)
def bootstrap_weights(num_images: int) -> np.ndarray:
    """(B, N): how often each image is drawn, always the same draws for the same number of images."""
    shares = np.full(num_images, 1 / num_images)
    return np.random.default_rng(0).multinomial(num_images, shares, size=_DRAWS).astype(np.float64)


def confusions(truth: Tensor, predicted: Tensor, num_classes: int) -> np.ndarray:
    """Pixels of each image by true and by predicted class, void left out: (n, S, S) twice -> (n, K, K) int32."""
    counted = truth != VOID
    image = torch.arange(len(truth), device=truth.device)[:, None, None].expand_as(truth)
    place = ((image * num_classes + truth.long()) * num_classes + predicted.long())[counted]
    counts = torch.bincount(place, minlength=len(truth) * num_classes**2)
    return counts.view(len(truth), num_classes, num_classes).cpu().numpy().astype(np.int32)


def _class_shares(both: np.ndarray, true: np.ndarray, predicted: np.ndarray, measure: Measure) -> np.ndarray:
    """IoU or accuracy of each class; NaN for one that does not occur in the true labels."""
    below = true + predicted - both if measure == "miou" else true
    return _ratio(both, np.where(true > 0, below, 0))


def _plain(value: float) -> float | None:
    """None for what JSON has no number for."""
    return value if np.isfinite(value) else None


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=np.asarray(below) > 0)


def _ends(values: np.ndarray) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)
