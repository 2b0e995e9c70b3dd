"""Classification accuracy on test images, with its bootstrap interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resim.probes.intervals import interval


@dataclass(frozen=True)
class Accuracy:
    """Top-1 and top-5 accuracy on N test images."""

    top1: np.ndarray
    """(N,) bool, whether the true class has the highest score."""
    top5: np.ndarray
    """(N,) bool, whether the true class is among the five with the highest scores."""
    chance: float
    """Fraction of the most frequent class among the test images: the accuracy of the best constant prediction."""

    @property
    def share(self) -> float:
        """Top-1 accuracy."""
        return float(self.top1.mean())

    def interval(self) -> tuple[float, float]:
        """95 % bootstrap interval of the top-1 accuracy, over images."""
        return interval(self.top1, self.counts)

    @property
    def counts(self) -> np.ndarray:
        """(N,) ones: one prediction per image."""
        return np.ones(len(self.top1), dtype=np.int64)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "top1": self.share,
            "interval": list(self.interval()),
            "top5": float(self.top5.mean()),
            "chance": self.chance,
            "n": len(self.top1),
        }


def accuracy(scores: Tensor, labels: Tensor) -> Accuracy:
    """Accuracy of scores (N, K) for true classes (N,); among equal scores the class with the lower index ranks first.

    Raises:
        ValueError: there is no image, the shapes do not match, or a score is NaN.
    """
    if scores.dim() != 2 or labels.shape != scores.shape[:1] or not len(labels):
        raise ValueError(f"scores must be (N, K) and classes (N,), not {tuple(scores.shape)} and {tuple(labels.shape)}")
    if scores.isnan().any():  # nothing compares greater than NaN, so every prediction would count as correct
        raise ValueError("scores contain NaN")
    labels = labels.to(scores.device)
    true = scores.gather(1, labels[:, None])
    is_earlier = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    rank = ((scores > true) | ((scores == true) & is_earlier)).sum(dim=1).cpu().numpy()
    return Accuracy(top1=rank < 1, top5=rank < 5, chance=float(labels.bincount().max()) / len(labels))
