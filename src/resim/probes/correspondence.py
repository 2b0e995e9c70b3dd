"""Region correspondence: does a feature map find a region of one view again in another view of the same image?

The method's own question, asked of any feature map and needing no labels. Two views of an image are cut with known
crops. For each window of the query view that lies inside the key view, the most similar cell of the key map is looked
up; it is right if it lies within a stated radius of where the window really is.

Shapes: N images, R windows, C channels, H x W cells of the key map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from resim.regions.pooling import precise_roi_pool
from resim.regions.windows import inside_view, map_windows, window_grid
from resim.views.views import Views

_RESAMPLES = 2000


@dataclass(frozen=True)
class Correspondence:
    """How often the most similar key cell is the right one."""

    correct: np.ndarray
    """(N,) windows found again, an image."""
    windows: np.ndarray
    """(N,) windows asked about, an image."""
    chance: float
    """Accuracy of a cell drawn at random."""
    median_error: float
    """Median distance between the most similar cell and the true place, px of the view."""
    radius: float
    """Up to which distance a cell counts as right, px of the view."""

    @property
    def accuracy(self) -> float:
        """Share of all windows that were found again."""
        return float(self.correct.sum() / self.windows.sum())

    def interval(self) -> tuple[float, float]:
        """95 % bootstrap interval of the accuracy, images drawn with replacement."""
        low, high = np.percentile(_resample(self.correct, self.windows), [2.5, 97.5])
        return float(low), float(high)

    def __str__(self) -> str:
        low, high = self.interval()
        return (
            f"{self.accuracy:.1%} [{low:.1%}, {high:.1%}] within {self.radius:g} px, chance {self.chance:.1%}, median "
            f"error {self.median_error:.0f} px, n = {int(self.windows.sum())} windows of {len(self.windows)} images"
        )


def difference(a: Correspondence, b: Correspondence) -> tuple[float, float, float]:
    """Accuracy of `a` less that of `b` on the same windows, and its 95 % bootstrap interval over images.

    Raises:
        ValueError: they were not measured on the same windows.
    """
    if not np.array_equal(a.windows, b.windows):
        raise ValueError("the two were measured on different windows")
    low, high = np.percentile(_resample(a.correct - b.correct, a.windows), [2.5, 97.5])
    return a.accuracy - b.accuracy, float(low), float(high)


def _resample(correct: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """(2000,) accuracies over images drawn with replacement, always the same draws."""
    drawn = np.random.default_rng(0).integers(len(windows), size=(_RESAMPLES, len(windows)))
    return correct[drawn].sum(axis=1) / np.maximum(windows[drawn].sum(axis=1), 1)


@torch.no_grad()
def correspondence(
    features: Callable[[Tensor], Tensor],
    pairs: Iterable[tuple[Views, Views]],
    *,
    stride: int,
    window: int = 48,
    step: int = 16,
    radius: float | None = None,
) -> Correspondence:
    """Measure region correspondence of one feature map.

    Args:
        features: (N, 3, S, S) views -> (N, C, H, W) map, in evaluation mode.
        pairs: batches of view pairs with known crops.
        stride: px of the view a cell of the map; cell (i, j) sits at pixel (i * stride, j * stride).
        window: side of a query window, px; its features are pooled precisely.
        step: distance between windows, px.
        radius: up to which distance a cell counts as right, px; default: one stride.

    Raises:
        ValueError: no window lies inside a key view in any pair.
    """
    radius = float(stride) if radius is None else radius
    correct, windows, errors, chances = [], [], [], []
    for views_q, views_k in pairs:
        size = views_q.size
        grid = window_grid(size, window, step, closed=True)
        flips = {"flipped_q": views_q.flipped, "flipped_k": views_k.flipped}
        mapped = map_windows(grid, views_q.crops, views_k.crops, size, **flips)
        valid = inside_view(mapped, size)
        map_k = features(views_k.images).float()
        regions = F.normalize(precise_roi_pool(features(views_q.images).float(), grid.to(map_k.device), stride), dim=-1)
        height, width = map_k.shape[-2:]
        cells = F.normalize(map_k.flatten(2), dim=1)  # (N, C, H * W)
        nearest = (regions @ cells).argmax(dim=-1).cpu()  # (N, R)
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        places = torch.stack([x.flatten(), y.flatten()], dim=1).double() * stride  # (H * W, 2)
        centres = (mapped[..., :2] + mapped[..., 2:]) / 2  # (N, R, 2)
        distance = torch.cdist(centres, places.expand(len(centres), -1, -1))  # (N, R, H * W)
        error = distance.gather(2, nearest[..., None])[..., 0]
        correct.append(((error <= radius) & valid).sum(dim=1))
        windows.append(valid.sum(dim=1))
        errors.append(error[valid])
        chances.append((distance <= radius).double().mean(dim=2)[valid])
    asked = torch.cat(windows).numpy() if windows else np.zeros(0)
    if not asked.sum():
        raise ValueError("no window of the query views lies inside its key view: nothing to measure")
    return Correspondence(
        correct=torch.cat(correct).numpy(),
        windows=asked,
        chance=float(torch.cat(chances).mean()),
        median_error=float(torch.cat(errors).median()),
        radius=radius,
    )
