"""Windows that slide over the query view, and their map into the key view.

Shapes: N images, R windows. Boxes are (x0, y0, x1, y1) in pixels of a view, crops are (top, left, height, width) in
pixels of the source image (torchvision's order). Everything is float64, so that a window on the edge of a view is
inside or outside as in the published program.
"""

from __future__ import annotations

import torch
from torch import Tensor

from resim.regions.grid import window_starts


def window_grid(view_size: int, window: int, step: int, *, closed: bool = False) -> Tensor:
    """Square windows at regular distances over a square view, row by row.

    Args:
        view_size: side of the view, px.
        window: side of a window, px.
        step: distance between neighbouring windows, px.
        closed: also keep the windows that end exactly at the right or bottom edge (x1 = `view_size`). The published
            grid of ReSim-FPN is open (x1 < `view_size`); that of ReSim-C4, inferred from its traces, is closed.

    Returns:
        (R, 4) float64 boxes, px of the view.

    Raises:
        ValueError: no window fits into the view, or `window` or `step` is below 1 px.

    Source: Xiao et al., ICCV 2021 (arXiv 2103.12902), section 3.2.
    """
    starts = window_starts(view_size, window, step, closed=closed)
    starts = torch.arange(starts.start, starts.stop, starts.step, dtype=torch.float64)
    y0, x0 = torch.meshgrid(starts, starts, indexing="ij")
    x0, y0 = x0.reshape(-1), y0.reshape(-1)
    return torch.stack([x0, y0, x0 + window, y0 + window], dim=1)


def mirror_boxes(boxes: Tensor, view_size: float, flipped: Tensor) -> Tensor:
    """Mirror the boxes (N, R, 4) of the views with `flipped` (N,) bool left to right; leave the others unchanged."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    mirrored = torch.stack([view_size - x1, y0, view_size - x0, y1], dim=-1)
    return torch.where(flipped[:, None, None], mirrored, boxes)


def map_windows(
    windows: Tensor,
    crops_q: Tensor,
    crops_k: Tensor,
    view_size: int,
    *,
    flipped_q: Tensor | None = None,
    flipped_k: Tensor | None = None,
) -> Tensor:
    """Map windows of the query views into the key views: one affine map for each axis.

    For an edge e: source = width_q * e / S + left_q, then e_k = (source - left_k) * S / width_k, in float64 and in
    this order of operations.

    Args:
        windows: (R, 4) boxes for every query view, or (N, R, 4), px.
        crops_q: (N, 4) crops (top, left, height, width) of the query views, px of the source image.
        crops_k: (N, 4) likewise of the key views.
        view_size: S, the side of both views, px.
        flipped_q: (N,) bool, query views that are mirrored *after* cropping; None if the flip is shared and comes
            before the crop, as in ReSim: the crops are then boxes of the mirrored image.
        flipped_k: (N,) bool, likewise of the key views.

    Returns:
        (N, R, 4) float64 boxes, px of the key view, which may lie partly or wholly outside it.

    Source: Xiao et al., ICCV 2021, section 3.2.
    """
    crops_q, crops_k = crops_q.double(), crops_k.double()
    windows = windows.double()
    if windows.dim() == 2:
        windows = windows.expand(len(crops_q), -1, -1)
    if flipped_q is not None:
        windows = mirror_boxes(windows, view_size, flipped_q)
    # (top, left, height, width) -> offsets and sizes in the order of the box's columns
    offset_q, size_q = crops_q[:, None, [1, 0, 1, 0]], crops_q[:, None, [3, 2, 3, 2]]
    offset_k, size_k = crops_k[:, None, [1, 0, 1, 0]], crops_k[:, None, [3, 2, 3, 2]]
    source = size_q * windows / view_size + offset_q
    mapped = (source - offset_k) * view_size / size_k
    return mapped if flipped_k is None else mirror_boxes(mapped, view_size, flipped_k)


def inside_view(boxes: Tensor, view_size: int) -> Tensor:
    """Whether each box (..., 4) lies wholly inside a view, x0 >= 0, y0 >= 0, x1 < S, y1 < S: (...) bool."""
    return (boxes[..., :2] >= 0).all(-1) & (boxes[..., 2:] < view_size).all(-1)
