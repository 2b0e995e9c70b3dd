"""Precise RoI pooling to 1 x 1 as one matrix product.

Shapes: N images, R windows an image, C channels, a map of H x W cells.

The feature map is interpolated bilinearly, with its samples at integer coordinates and zero outside the map. The exact
integral of this surface over a box is separable: the weight of a row or column of the map is the integral, over the
side of the box, of the triangle function around that row or column. This needs no custom kernel, runs on every device
and is differentiable.

Source: Jiang et al., arXiv 1807.11590, section 3.2.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _triangle_integral(t: Tensor) -> Tensor:
    """The integral of max(0, 1 - |x|) from minus infinity to t."""
    left = (t.clamp(-1, 0) + 1).square() / 2
    right = t.clamp(0, 1)
    return left + right - right.square() / 2


def axis_weights(start: Tensor, end: Tensor, cells: int) -> Tensor:
    """The weight of each of `cells` samples at 0, 1, 2, ... in the integral from `start` to `end`.

    Args:
        start: (...), in cells.
        end: (...), likewise.
        cells: number of samples.

    Returns:
        (..., cells) in the dtype of `start`.
    """
    position = torch.arange(cells, device=start.device, dtype=start.dtype)
    return _triangle_integral(end[..., None] - position) - _triangle_integral(start[..., None] - position)


def pooling_weights(boxes: Tensor, stride: float, height: int, width: int) -> Tensor:
    """The weight of every cell of a map in the mean over each box.

    Args:
        boxes: (..., 4) in pixels of the view.
        stride: pixels of the view for each cell; box coordinates are divided by it, with no half-pixel shift.
        height: H, cells.
        width: W, cells.

    Returns:
        (..., H * W) float64. The weights of a box inside the map's samples add up to 1; the part of a box outside
        the map counts as zeros. The weights of an empty box are 0.
    """
    x0, y0, x1, y1 = (boxes.double() / stride).unbind(-1)
    rows, columns = axis_weights(y0, y1, height), axis_weights(x0, x1, width)
    side_x, side_y = x1 - x0, y1 - y0
    has_area = (side_x > 0) & (side_y > 0)
    area = torch.where(has_area, side_x * side_y, 1.0)
    inverse_area = torch.where(has_area, 1.0 / area, 0.0)
    return (rows[..., :, None] * columns[..., None, :] * inverse_area[..., None, None]).flatten(-2)


def precise_roi_pool(features: Tensor, boxes: Tensor, stride: float) -> Tensor:
    """The mean of a bilinearly interpolated feature map over each box.

    Args:
        features: (N, C, H, W), of any floating dtype; the product is taken in this dtype, the weights in float64.
        boxes: (N, R, 4), or (R, 4) for the same boxes in every image; (x0, y0, x1, y1) in pixels of the view.
        stride: pixels of the view for each cell of the map.

    Returns:
        (N, R, C) in the dtype of `features`; an empty box pools to 0. Differentiable in `features`.

    Raises:
        ValueError: the shapes do not match.

    Source: Jiang et al., arXiv 1807.11590, equation 3, with one bin.
    """
    if features.dim() != 4 or boxes.shape[-1] != 4 or boxes.dim() not in (2, 3):
        raise ValueError(
            f"features of shape (N, C, H, W) and boxes of shape (N, R, 4) or (R, 4) are needed, "
            f"not {tuple(features.shape)} and {tuple(boxes.shape)}"
        )
    if boxes.dim() == 3 and len(boxes) != len(features):
        raise ValueError(f"{len(features)} feature maps but boxes of {len(boxes)} images")
    height, width = features.shape[-2:]
    weights = pooling_weights(boxes, stride, height, width).to(features.dtype)
    cells = features.flatten(2).transpose(1, 2)  # (N, H * W, C); no copy if channels_last
    return weights @ cells
