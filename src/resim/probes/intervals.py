"""Bootstrap intervals: how far a share might have been off, had other images of the same kind been measured."""

from __future__ import annotations

import numpy as np

_RESAMPLES = 2000
_DRAWS_AT_ONCE = 2**22


def resample(correct: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Shares `correct.sum() / counts.sum()` over images drawn with replacement, always the same draws.

    Args:
        correct: (N,) what counts, an image; differences of two may be negative.
        counts: (N,) what was asked, an image.

    Returns:
        (2000,) float64. Images are drawn whole: what is asked of one image is not independent.
    """
    images = len(counts)
    generator = np.random.default_rng(0)
    rows = max(1, min(_RESAMPLES, _DRAWS_AT_ONCE // max(1, images)))
    shares = []
    for start in range(0, _RESAMPLES, rows):
        drawn = generator.integers(images, size=(min(rows, _RESAMPLES - start), images))
        shares.append(correct[drawn].sum(axis=1) / np.maximum(counts[drawn].sum(axis=1), 1))
    return np.concatenate(shares)


def interval(correct: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of `correct.sum() / counts.sum()`, images drawn with replacement."""
    low, high = np.percentile(resample(correct, counts), [2.5, 97.5])
    return float(low), float(high)


def difference(a: np.ndarray, b: np.ndarray, counts: np.ndarray) -> tuple[float, float, float]:
    """Share of `a` less that of `b`, both (N,) of the same `counts`, and its 95 % bootstrap interval over images."""
    apart = a.astype(np.int64) - b.astype(np.int64)
    low, high = interval(apart, counts)
    return float(apart.sum() / counts.sum()), low, high
