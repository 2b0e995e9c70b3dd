"""How alike are regions? Numbers only, without a picture: heat maps, mutual nearest regions, principal components.

Everything is a cosine of L2-normalised vectors, as in the region loss. Boxes are (x0, y0, x1, y1) and points (x, y),
both in px of the encoded image.

Shapes: C channels, H x W cells, R and S regions of two images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from resim.errors import UserError
from resim.regions.pooling import axis_weights, precise_roi_pool
from resim.similarity.feature_maps import FeatureMap, Photograph

WINDOW_CELLS = 3  # 48 px on P4, the published window; as many cells as a negative is the mean of
_CHUNK = 1024
Region = tuple[float, float] | tuple[float, float, float, float]


def encoded_region(photograph: Photograph, region: tuple[float, ...]) -> Region:
    """A point or box given in px of an image's file, in px of it as encoded.

    Raises:
        UserError: it reaches outside the image, or has no area.
    """
    width, height = photograph.original
    across, down = photograph.scale
    told = f"{','.join(f'{value:g}' for value in region)}: {photograph.name} is {width} x {height} px"
    if len(region) == 2:
        x, y = region
        if not (0 <= x <= width and 0 <= y <= height):
            raise UserError(f"--point {told}")
        return x * across, y * down
    x0, y0, x1, y1 = region
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise UserError(f"--box {told}; x0 < x1 and y0 < y1 within it are needed")
    return x0 * across, y0 * down, x1 * across, y1 * down


def region_vector(features: FeatureMap, region: Region) -> Tensor:
    """What a map says of a region: (C,), L2-normalised.

    A box is pooled precisely, as the loss pools its windows; at a point the bilinear surface is read.
    """
    _, height, width = features.cells.shape
    if len(region) == 4:
        pooled = precise_roi_pool(features.cells[None], torch.tensor([region], dtype=torch.float64), features.stride)
        return F.normalize(pooled[0, 0], dim=0)
    x = min(max(region[0] / features.stride, 0.0), width - 1.0)
    y = min(max(region[1] / features.stride, 0.0), height - 1.0)
    column, row = min(int(x), max(width - 2, 0)), min(int(y), max(height - 2, 0))
    right, low = x - column, y - row
    patch = features.cells[:, row : row + 2, column : column + 2]
    down = torch.tensor([1 - low, low])[: patch.shape[1]]
    across = torch.tensor([1 - right, right])[: patch.shape[2]]
    return F.normalize(torch.einsum("chw,h,w->c", patch, down, across), dim=0)


def similarity_map(vector: Tensor, features: FeatureMap) -> Tensor:
    """Cosine of a normalised vector (C,) with every cell: (H, W) in [-1, 1]."""
    return torch.einsum("c,chw->hw", vector, F.normalize(features.cells, dim=0))


def peak(similarity: Tensor, stride: int) -> tuple[float, float]:
    """Where the most similar cell of (H, W) lies: (x, y) px."""
    row, column = divmod(int(similarity.argmax()), similarity.shape[1])
    return float(column * stride), float(row * stride)


@dataclass(frozen=True)
class Matches:
    """Regions of two images that are each other's most similar one."""

    boxes_a: Tensor
    """(n, 4) px of the first image."""
    boxes_b: Tensor
    """(n, 4) px of the second."""
    similarity: Tensor
    """(n,) cosine, falling."""
    mutual: int
    """How many mutual nearest pairs there are, of which n were chosen."""
    regions: tuple[int, int]
    """R and S: how many regions were compared."""


def mutual_nearest(
    a: FeatureMap, b: FeatureMap, size_a: tuple[int, int], size_b: tuple[int, int], *, count: int = 12
) -> Matches:
    """Pairs of regions each of which is the other's most similar one; the most similar `count` that do not overlap.

    Args:
        a: a level's map of the first image.
        b: the same level's map of the second image, by the same network.
        size_a: width and height of the first image, px.
        size_b: of the second.
        count: of pairs, at most.
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
    found, similarity = torch.cat(nearest_b), torch.cat(best_a)
    mutual = torch.nonzero(nearest_a[found] == torch.arange(len(found)))[:, 0]
    order = mutual[torch.argsort(similarity[mutual], descending=True, stable=True)]
    chosen: list[int] = []
    for i in order.tolist():
        if len(chosen) == count:
            break
        apart = all(
            not _overlap(windows_a[i], windows_a[j]) and not _overlap(windows_b[found[i]], windows_b[found[j]])
            for j in chosen
        )
        if apart:
            chosen.append(i)
    picked = torch.tensor(chosen, dtype=torch.int64)
    return Matches(
        windows_a[picked], windows_b[found[picked]], similarity[picked], len(mutual), (len(regions_a), len(regions_b))
    )


def region_grid(width: int, height: int, *, window: int, step: int) -> Tensor:
    """Square windows at every `step` px that lie within an image, at least one: (R, 4) float64, row by row."""
    (left, right), (top, bottom) = (_spans(side, window, step) for side in (width, height))
    y0, x0 = torch.meshgrid(top, left, indexing="ij")
    y1, x1 = torch.meshgrid(bottom, right, indexing="ij")
    return torch.stack([x0, y0, x1, y1], dim=-1).flatten(0, 1)


def grid_vectors(features: FeatureMap, width: int, height: int, *, window: int, step: int) -> Tensor:
    """What a map says of each window of `region_grid`: (R, C), L2-normalised.

    It is precise RoI pooling; over a grid its weights are those of rows times those of columns for all windows at
    once, where weights of single windows would need R x H x W numbers.
    """
    _, rows, columns = features.cells.shape
    weights = []
    for side, cells in ((height, rows), (width, columns)):
        low, high = _spans(side, window, step)
        scale = features.stride / (high - low)[:, None]
        weights.append((axis_weights(low / features.stride, high / features.stride, cells) * scale).float())
    pooled = weights[0] @ features.cells @ weights[1].T
    return F.normalize(pooled.flatten(1).T, dim=1)


def _spans(side: int, window: int, step: int) -> tuple[Tensor, Tensor]:
    """Where the windows of one direction begin and end, px."""
    low = torch.arange(0, max(side - window, 0) + 1, step, dtype=torch.float64)
    return low, low + min(window, side)


def _overlap(a: Tensor, b: Tensor) -> bool:
    return bool((torch.maximum(a[:2], b[:2]) < torch.minimum(a[2:], b[2:])).all())


def principal_components(maps: Sequence[FeatureMap], num: int = 3) -> tuple[list[Tensor], Tensor]:
    """The first principal components of all the cells of some maps together, L2-normalised before.

    A component's sign is such that its largest weight is positive: the same maps give the same components.

    Args:
        maps: of one level of one network, of any number of images.
        num: of components; those beyond the rank are 0.

    Returns:
        For each map (num, H, W), and (num,) the components' shares of the variance.
    """
    cells = [F.normalize(features.cells, dim=0).flatten(1).T.double() for features in maps]
    every = torch.cat(cells)
    centred = every - every.mean(dim=0)
    if len(centred) < centred.shape[1]:  # the smaller of the two Gram matrices has the same spectrum
        values, vectors = torch.linalg.eigh(centred @ centred.T)
        axes = F.normalize(centred.T @ vectors.flip(1)[:, :num], dim=0)
    else:
        values, vectors = torch.linalg.eigh(centred.T @ centred)
        axes = vectors.flip(1)[:, :num]
    values = values.flip(0).clamp(min=0)
    shares = values[:num] / values.sum().clamp(min=1e-12)
    axes = axes * (shares > 1e-9)
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    axes = F.pad(axes * torch.where(largest < 0, -1.0, 1.0), (0, num - axes.shape[1]))
    shares = F.pad(shares, (0, num - len(shares)))
    projected = (centred @ axes).float().split([len(part) for part in cells])
    return [
        part.T.unflatten(1, features.cells.shape[1:]) for part, features in zip(projected, maps, strict=True)
    ], shares.float()
