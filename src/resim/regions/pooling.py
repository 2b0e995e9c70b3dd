"""Precise RoI pooling to 1 x 1, as two differences of an integral and one matrix product.

Shapes: N images, R windows an image, C channels, a map of H x W cells.

A feature map is read as the bilinear surface whose samples sit at integer coordinates (zero outside the map). Its exact
integral over a box is separable: each row and each column of the map has a weight, the integral over the box's side of
the triangle function around that row or column. No kernel is compiled, every device has it, and it is differentiable.

Source: Jiang et al., arXiv 1807.11590, section 3.2.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _triangle_integral(t: Tensor) -> Tensor:
    """The integral from minus infinity to t of max(0, 1 - |x|)."""
    left = (t.clamp(-1, 0) + 1).square() / 2
    right = t.clamp(0, 1)
    return left + right - right.square() / 2


def axis_weights(low: Tensor, high: Tensor, cells: int) -> Tensor:
    """How much each of `cells` samples at 0, 1, 2, ... adds to the integral from `low` to `high`, both (...).

    Returns (..., cells) in the dtype of `low`.
    """
    position = torch.arange(cells, device=low.device, dtype=low.dtype)
    return _triangle_integral(high[..., None] - position) - _triangle_integral(low[..., None] - position)


def pooling_weights(boxes: Tensor, stride: float, height: int, width: int) -> Tensor:
    """The weight of every cell of a map in the mean over each box.

    Args:
        boxes: (..., 4) in pixels of the view.
        stride: pixels a cell; box coordinates are divided by it, with no half-pixel shift.
        height: H, cells.
        width: W, cells.

    Returns:
        (..., H * W) float64. A box without area has weight 0 everywhere. The weights of a box that lies within the
        map's samples add up to 1; what lies outside the map counts as zeros.
    """
    x0, y0, x1, y1 = (boxes.double() / stride).unbind(-1)
    rows, columns = axis_weights(y0, y1, height), axis_weights(x0, x1, width)
    side_x, side_y = x1 - x0, y1 - y0
    real = (side_x > 0) & (side_y > 0)
    area = torch.where(real, side_x * side_y, 1.0)
    share = torch.where(real, 1.0 / area, 0.0)
    return (rows[..., :, None] * columns[..., None, :] * share[..., None, None]).flatten(-2)


def precise_roi_pool(features: Tensor, boxes: Tensor, stride: float) -> Tensor:
    """The mean of the bilinear surface through a feature map, over each box.

    Args:
        features: (N, C, H, W), of any floating dtype; the product is taken in this dtype, the weights in float64.
        boxes: (N, R, 4), or (R, 4) for the same windows in every image; (x0, y0, x1, y1) in pixels of the view.
        stride: pixels of the view a cell of the map.

    Returns:
        (N, R, C) in the dtype of `features`; an empty box pools to 0. Differentiable in `features`.

    Raises:
        ValueError: the shapes do not belong together.

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
