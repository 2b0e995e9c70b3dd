"""Accuracy of class scores on test images, with its bootstrap interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resim.probes.intervals import interval


@dataclass(frozen=True)
class Accuracy:
    """How many of N test images have their own class first, or among the first five."""

    top1: np.ndarray
    """(N,) bool."""
    top5: np.ndarray
    """(N,) bool."""
    chance: float
    """Share of the most frequent class among the test images: what a constant answer can reach."""

    @property
    def share(self) -> float:
        """Top-1 accuracy."""
        return float(self.top1.mean())

    def interval(self) -> tuple[float, float]:
        """95 % bootstrap interval of the top-1 accuracy, images drawn with replacement."""
        return interval(self.top1, self.counts)

    @property
    def counts(self) -> np.ndarray:
        """(N,) ones: one question an image."""
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
    """Accuracy of scores (N, K) for classes (N,); of classes that tie, the first comes first.

    Raises:
        ValueError: no image, shapes that do not belong together, or scores that are no numbers.
    """
    if scores.dim() != 2 or labels.shape != scores.shape[:1] or not len(labels):
        raise ValueError(f"scores (N, K) and classes (N,), not {tuple(scores.shape)} and {tuple(labels.shape)}")
    if scores.isnan().any():  # nothing is above NaN: every answer would be right
        raise ValueError("scores that are no numbers (NaN)")
    labels = labels.to(scores.device)
    own = scores.gather(1, labels[:, None])
    earlier = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    rank = ((scores > own) | ((scores == own) & earlier)).sum(dim=1).cpu().numpy()
    return Accuracy(top1=rank < 1, top5=rank < 5, chance=float(labels.bincount().max()) / len(labels))
