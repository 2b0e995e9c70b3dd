"""Cells of a key map: the negatives of the region loss."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def key_cells(features: Tensor) -> Tensor:
    """Cells of a key map: L2-normalised means over 3 x 3 neighbourhoods.

    Args:
        features: (N, C, H, W).

    Returns:
        (N, (H - 2) * (W - 2), C), row by row; cell (i, j) is the mean around position (i + 1, j + 1) of the map.

    Source: the published program's negatives (3 x 3 average pooling, stride 1, no padding).
    """
    means = F.avg_pool2d(features, 3, stride=1)
    return F.normalize(means.flatten(2).transpose(1, 2), dim=-1)
