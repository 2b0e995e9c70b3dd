"""Mutual nearest regions of two images.

Shapes: R and S regions of the two images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from resim.similarity.feature_maps import FeatureMap
from resim.similarity.regions import grid_vectors, region_grid

WINDOW_CELLS = 3  # 48 px on P4, the published window
_CHUNK = 1024  # regions of the first image that are compared at once


@dataclass(frozen=True)
class Matches:
    """n pairs of regions of two images, each the other's nearest neighbour."""

    boxes_a: Tensor
    """(n, 4) px of the first image."""
    boxes_b: Tensor
    """(n, 4) px of the second image."""
    similarity: Tensor
    """(n,) cosine similarity, in descending order."""
    num_mutual: int
    """Number of mutual nearest pairs, from which the n were chosen."""
    num_regions: tuple[int, int]
    """R and S, the number of regions that were compared."""


def mutual_nearest(
    a: FeatureMap, b: FeatureMap, size_a: tuple[int, int], size_b: tuple[int, int], *, count: int = 12
) -> Matches:
    """The `count` most similar mutual nearest pairs of regions that do not overlap.

    Regions are windows of 3 x 3 cells, one at every cell.

    Args:
        a: a level's map of the first image.
        b: the same level's map of the second image, by the same network.
        size_a: width and height of the first image, px.
        size_b: width and height of the second image, px.
        count: maximum number of pairs.
    """
    window, step = WINDOW_CELLS * a.stride, a.stride
    windows_a, windows_b = (region_grid(*size, window=window, step=step) for size in (size_a, size_b))
    regions_a, regions_b = (
        grid_vectors(features, *size, window=window, step=step) for features, size in ((a, size_a), (b, size_b))
    )
    best_b, nearest_a = torch.full((len(regions_b),), -2.0), torch.zeros(len(regions_b), dtype=torch.int64)
    best_a, nearest_b = [], []
    for start in range(0, len(regions_a), _CHUNK):
        cosines = regions_a[start : start + _CHUNK] @ regions_b.T
        values, places = cosines.max(dim=1)
        best_a.append(values)
        nearest_b.append(places)
        values, places = cosines.max(dim=0)
        better = values > best_b
        best_b = torch.where(better, values, best_b)
        nearest_a = torch.where(better, places + start, nearest_a)
    partner, similarity = torch.cat(nearest_b), torch.cat(best_a)
    mutual = torch.nonzero(nearest_a[partner] == torch.arange(len(partner)))[:, 0]
    order = mutual[torch.argsort(similarity[mutual], descending=True, stable=True)]
    chosen: list[int] = []
    for i in order.tolist():
        if len(chosen) == count:
            break
        is_free = all(
            not _overlap(windows_a[i], windows_a[j]) and not _overlap(windows_b[partner[i]], windows_b[partner[j]])
            for j in chosen
        )
        if is_free:
            chosen.append(i)
    index = torch.tensor(chosen, dtype=torch.int64)
    return Matches(
        windows_a[index], windows_b[partner[index]], similarity[index], len(mutual), (len(regions_a), len(regions_b))
    )


def _overlap(a: Tensor, b: Tensor) -> bool:
    return bool((torch.maximum(a[:2], b[:2]) < torch.minimum(a[2:], b[2:])).all())
