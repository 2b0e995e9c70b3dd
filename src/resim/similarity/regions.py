"""Features of regions and their cosine similarity with every cell of a map.

Vectors are L2-normalised, as in the region loss. Boxes are (x0, y0, x1, y1) and points (x, y), in px of the encoded
image.

Shapes: C channels, H x W cells, R regions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from resim.errors import UserError
from resim.regions.pooling import axis_weights, precise_roi_pool
from resim.similarity.feature_maps import FeatureMap, Photograph

Region = tuple[float, float] | tuple[float, float, float, float]
"""A point (x, y) or a box (x0, y0, x1, y1), px of the encoded image."""


def encoded_region(photograph: Photograph, region: tuple[float, ...]) -> Region:
    """Convert a point or box from px of the file to px of the encoded image.

    Raises:
        UserError: it reaches outside the image, or has no area.
    """
    width, height = photograph.original
    scale_x, scale_y = photograph.scale
    numbers = ",".join(f"{value:g}" for value in region)
    size = f"{photograph.name} is {width} x {height} px"
    if len(region) == 2:
        x, y = region
        if not (0 <= x <= width and 0 <= y <= height):
            raise UserError(f"--point {numbers}: {size}; name a point inside the image")
        return x * scale_x, y * scale_y
    x0, y0, x1, y1 = region
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise UserError(f"--box {numbers}: {size}; name a box inside the image with x0 < x1 and y0 < y1")
    return x0 * scale_x, y0 * scale_y, x1 * scale_x, y1 * scale_y


def region_vector(features: FeatureMap, region: Region) -> Tensor:
    """The L2-normalised feature of a region: (C,).

    A box is pooled by precise RoI pooling, like the windows of the loss; at a point, the map is interpolated
    bilinearly.
    """
    _, height, width = features.cells.shape
    if len(region) == 4:
        pooled = precise_roi_pool(features.cells[None], torch.tensor([region], dtype=torch.float64), features.stride)
        return F.normalize(pooled[0, 0], dim=0)
    x = min(max(region[0] / features.stride, 0.0), width - 1.0)
    y = min(max(region[1] / features.stride, 0.0), height - 1.0)
    column, row = min(int(x), max(width - 2, 0)), min(int(y), max(height - 2, 0))
    dx, dy = x - column, y - row
    patch = features.cells[:, row : row + 2, column : column + 2]
    weights_y = torch.tensor([1 - dy, dy])[: patch.shape[1]]
    weights_x = torch.tensor([1 - dx, dx])[: patch.shape[2]]
    return F.normalize(torch.einsum("chw,h,w->c", patch, weights_y, weights_x), dim=0)


def similarity_map(vector: Tensor, features: FeatureMap) -> Tensor:
    """Cosine of a normalised vector (C,) with every cell: (H, W) in [-1, 1]."""
    return torch.einsum("c,chw->hw", vector, F.normalize(features.cells, dim=0))


def peak(similarity: Tensor, stride: int) -> tuple[float, float]:
    """Position of the most similar cell of (H, W): (x, y) px."""
    row, column = divmod(int(similarity.argmax()), similarity.shape[1])
    return float(column * stride), float(row * stride)


def region_grid(width: int, height: int, *, window: int, step: int) -> Tensor:
    """Square windows at every `step` px that lie inside an image, at least one: (R, 4) float64, row by row."""
    (left, right), (top, bottom) = (_spans(side, window, step) for side in (width, height))
    y0, x0 = torch.meshgrid(top, left, indexing="ij")
    y1, x1 = torch.meshgrid(bottom, right, indexing="ij")
    return torch.stack([x0, y0, x1, y1], dim=-1).flatten(0, 1)


def grid_vectors(features: FeatureMap, width: int, height: int, *, window: int, step: int) -> Tensor:
    """The L2-normalised feature of each window of `region_grid`: (R, C).

    Precise RoI pooling of a whole grid is two matrix products, one over rows and one over columns; weights of single
    windows would take R x H x W numbers.
    """
    _, rows, columns = features.cells.shape
    weights = []
    for side, cells in ((height, rows), (width, columns)):
        start, end = _spans(side, window, step)
        scale = features.stride / (end - start)[:, None]
        weights.append((axis_weights(start / features.stride, end / features.stride, cells) * scale).float())
    pooled = weights[0] @ features.cells @ weights[1].T
    return F.normalize(pooled.flatten(1).T, dim=1)


def _spans(side: int, window: int, step: int) -> tuple[Tensor, Tensor]:
    """Start and end of the windows along one axis, px."""
    start = torch.arange(0, max(side - window, 0) + 1, step, dtype=torch.float64)
    return start, start + min(window, side)
