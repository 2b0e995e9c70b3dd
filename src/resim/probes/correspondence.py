"""Region correspondence: does a feature map match the regions of one view with those of another view of the image?

This is what ReSim is trained for; any feature map can be measured, without labels. Two views of an image are cut with
known crops. Each window of the query view that lies inside the key view is matched with the most similar cell of the
key map; the match is correct if the cell lies within a radius of the true position of the window.

Shapes: N images, R windows, C channels, H x W cells of the key map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from resim.probes import intervals
from resim.probes.pairs import KnownPairs, from_views
from resim.regions.pooling import precise_roi_pool
from resim.regions.windows import inside_view, window_grid
from resim.views.views import Views


@dataclass(frozen=True)
class Correspondence:
    """How often the most similar key cell is at the true position."""

    correct: np.ndarray
    """(N,) number of windows of each image that are matched correctly."""
    windows: np.ndarray
    """(N,) number of windows of each image."""
    chance: float
    """Accuracy of a random cell."""
    median_error: float
    """Median distance between the most similar cell and the true position, px of the view."""
    radius: float
    """Maximum distance of a correct cell, px of the view."""

    @property
    def accuracy(self) -> float:
        """Fraction of all windows that are matched correctly."""
        return float(self.correct.sum() / self.windows.sum())

    def interval(self) -> tuple[float, float]:
        """95 % bootstrap interval of the accuracy, over images."""
        return intervals.interval(self.correct, self.windows)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "accuracy": self.accuracy,
            "interval": list(self.interval()),
            "chance": self.chance,
            "median_error_px": self.median_error,
            "radius_px": self.radius,
            "windows": int(self.windows.sum()),
            "images": len(self.windows),
        }

    def __str__(self) -> str:
        low, high = self.interval()
        return (
            f"{self.accuracy:.1%} [{low:.1%}, {high:.1%}] within {self.radius:g} px, chance {self.chance:.1%}, median "
            f"error {self.median_error:.0f} px, n = {int(self.windows.sum())} windows of {len(self.windows)} images"
        )


def difference(a: Correspondence, b: Correspondence) -> tuple[float, float, float]:
    """Accuracy of `a` minus that of `b` on the same windows, and its 95 % bootstrap interval over images.

    Raises:
        ValueError: they are not measured on the same windows.
    """
    if not np.array_equal(a.windows, b.windows):
        raise ValueError("the two are measured on different windows")
    return intervals.difference(a.correct, b.correct, a.windows)


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
        features: computes a map (N, C, H, W) of views (N, 3, S, S), in evaluation mode.
        pairs: batches of view pairs with known crops.
        stride: of the map, px of the view; cell (i, j) lies at row i * stride, column j * stride.
        window: side of a query window, px; its feature is pooled by precise RoI pooling.
        step: distance between windows, px.
        radius: maximum distance of a correct cell, px; None: one stride.

    Raises:
        ValueError: no window of any pair lies inside its key view.
    """
    known = (from_views(views_q, views_k) for views_q, views_k in pairs)
    return correspondences(
        lambda images: {"": features(images)}, known, strides={"": stride}, window=window, step=step, radius=radius
    )[""]


@torch.no_grad()
def correspondences(
    maps: Callable[[Tensor], dict[str, Tensor]],
    pairs: Iterable[KnownPairs],
    *,
    strides: dict[str, int],
    window: int = 48,
    step: int = 16,
    radius: float | None = None,
) -> dict[str, Correspondence]:
    """Measure region correspondence of several maps of a network; each view is encoded once.

    Args:
        maps: computes the maps (N, C, H, W) of all levels of views (N, 3, S, S), in evaluation mode.
        pairs: batches of view pairs.
        strides: of the levels to measure, px of the view.
        window: side of a query window, px.
        step: distance between windows, px.
        radius: maximum distance of a correct cell, px; None: one stride of each level.

    Raises:
        ValueError: no window of any pair lies inside its key view.
    """
    matches = {name: _Matches(stride, float(stride) if radius is None else radius) for name, stride in strides.items()}
    for pair in pairs:
        grid = window_grid(pair.size, window, step, closed=True)
        mapped = pair.map_to_key(grid)
        valid = inside_view(mapped, pair.size)
        maps_q, maps_k = maps(pair.query), maps(pair.key)
        for name, level_matches in matches.items():
            level_matches.add(maps_q[name], maps_k[name], grid, mapped, valid)
    return {name: level_matches.total() for name, level_matches in matches.items()}


class _Matches:
    """The matches of one map, accumulated over batches."""

    def __init__(self, stride: int, radius: float) -> None:
        self.stride, self.radius = stride, radius
        self.correct: list[Tensor] = []
        self.windows: list[Tensor] = []
        self.errors: list[Tensor] = []
        self.chances: list[Tensor] = []

    def add(self, map_q: Tensor, map_k: Tensor, grid: Tensor, mapped: Tensor, valid: Tensor) -> None:
        """Add a batch: maps (N, C, H, W), windows (R, 4), the windows mapped to the key views (N, R, 4), and (N, R)."""
        dtype = torch.promote_types(map_k.dtype, torch.float32)
        regions = precise_roi_pool(map_q.to(dtype), grid.to(map_q.device), self.stride)
        height, width = map_k.shape[-2:]
        cells = F.normalize(map_k.to(dtype).flatten(2), dim=1)  # (N, C, H * W)
        nearest = (F.normalize(regions, dim=-1) @ cells).argmax(dim=-1).cpu()  # (N, R)
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        positions = torch.stack([x.flatten(), y.flatten()], dim=1).double() * self.stride  # (H * W, 2)
        centres = (mapped[..., :2] + mapped[..., 2:]) / 2  # (N, R, 2)
        distance = torch.cdist(centres, positions.expand(len(centres), -1, -1))  # (N, R, H * W)
        error = distance.gather(2, nearest[..., None])[..., 0]
        self.correct.append(((error <= self.radius) & valid).sum(dim=1))
        self.windows.append(valid.sum(dim=1))
        self.errors.append(error[valid])
        self.chances.append((distance <= self.radius).double().mean(dim=2)[valid])

    def total(self) -> Correspondence:
        """The correspondence over all batches."""
        windows = torch.cat(self.windows).numpy() if self.windows else np.zeros(0)
        if not windows.sum():
            raise ValueError("no window of the query views lies inside its key view: nothing to measure")
        return Correspondence(
            correct=torch.cat(self.correct).numpy(),
            windows=windows,
            chance=float(torch.cat(self.chances).mean()),
            median_error=float(torch.cat(self.errors).median()),
            radius=self.radius,
        )
