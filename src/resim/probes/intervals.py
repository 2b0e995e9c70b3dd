"""Bootstrap intervals of a fraction over test images."""

from __future__ import annotations

import numpy as np

_RESAMPLES = 2000


def resample(correct: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Bootstrap samples of `correct.sum() / counts.sum()` over images, the same for the same input.

    Whole images are resampled, because the predictions on one image are not independent. Images with equal numbers are
    resampled together by a multinomial distribution, which is equivalent and takes the same time for any N.

    Args:
        correct: (N,) correct predictions of each image; may be negative for a difference.
        counts: (N,) predictions of each image.

    Returns:
        (2000,) float64.
    """
    kinds, num_of_kind = np.unique(np.stack([correct, counts], axis=1).astype(np.int64), axis=0, return_counts=True)
    images = len(counts)
    samples = np.random.default_rng(0).multinomial(images, num_of_kind / images, size=_RESAMPLES)
    return samples @ kinds[:, 0] / np.maximum(samples @ kinds[:, 1], 1)


def interval(correct: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of `correct.sum() / counts.sum()` over images."""
    low, high = np.percentile(resample(correct, counts), [2.5, 97.5])
    return float(low), float(high)


def difference(a: np.ndarray, b: np.ndarray, counts: np.ndarray) -> tuple[float, float, float]:
    """The fraction of `a` minus that of `b`, both (N,) with the same `counts`, and its 95 % bootstrap interval."""
    delta = a.astype(np.int64) - b.astype(np.int64)
    low, high = interval(delta, counts)
    return float(delta.sum() / counts.sum()), low, high
