"""Bootstrap intervals: how far a share might have been off, had other images of the same kind been measured."""

from __future__ import annotations

import numpy as np

_RESAMPLES = 2000


def resample(correct: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Shares `correct.sum() / counts.sum()` over images drawn with replacement, always the same draws.

    Images are drawn whole: what is asked of one image is not independent. Images alike in both numbers are drawn
    together, how many of each kind being multinomial: the same distribution, in no time for any number of images.

    Args:
        correct: (N,) what counts, an image; differences of two may be negative.
        counts: (N,) what was asked, an image.

    Returns:
        (2000,) float64.
    """
    kinds, of_kind = np.unique(np.stack([correct, counts], axis=1).astype(np.int64), axis=0, return_counts=True)
    images = len(counts)
    drawn = np.random.default_rng(0).multinomial(images, of_kind / images, size=_RESAMPLES)
    return drawn @ kinds[:, 0] / np.maximum(drawn @ kinds[:, 1], 1)


def interval(correct: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of `correct.sum() / counts.sum()`, images drawn with replacement."""
    low, high = np.percentile(resample(correct, counts), [2.5, 97.5])
    return float(low), float(high)


def difference(a: np.ndarray, b: np.ndarray, counts: np.ndarray) -> tuple[float, float, float]:
    """Share of `a` minus that of `b`, both (N,) of the same `counts`, and its 95 % bootstrap interval over images."""
    apart = a.astype(np.int64) - b.astype(np.int64)
    low, high = interval(apart, counts)
    return float(apart.sum() / counts.sum()), low, high
