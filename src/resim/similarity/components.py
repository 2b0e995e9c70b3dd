"""Principal components of feature maps.

Shapes: C channels, H x W cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from resim.similarity.feature_maps import FeatureMap


def principal_components(maps: Sequence[FeatureMap], num: int = 3) -> tuple[list[Tensor], Tensor]:
    """The first principal components of the L2-normalised cells of all maps together.

    The sign of a component makes its largest weight positive, so the same maps give the same components.

    Args:
        maps: of one level of one network, of any number of images.
        num: number of components; those beyond the rank are 0.

    Returns:
        For each map (num, H, W), and (num,) the fraction of the variance that each component explains.
    """
    cells = [F.normalize(features.cells, dim=0).flatten(1).T.double() for features in maps]
    vectors = torch.cat(cells)
    centred = vectors - vectors.mean(dim=0)
    if len(centred) < centred.shape[1]:  # the smaller of the two Gram matrices has the same spectrum
        values, axes = torch.linalg.eigh(centred @ centred.T)
        axes = F.normalize(centred.T @ axes.flip(1)[:, :num], dim=0)
    else:
        values, axes = torch.linalg.eigh(centred.T @ centred)
        axes = axes.flip(1)[:, :num]
    values = values.flip(0).clamp(min=0)
    fractions = values[:num] / values.sum().clamp(min=1e-12)
    axes = axes * (fractions > 1e-9)
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    axes = F.pad(axes * torch.where(largest < 0, -1.0, 1.0), (0, num - axes.shape[1]))
    fractions = F.pad(fractions, (0, num - len(fractions)))
    projected = (centred @ axes).float().split([len(part) for part in cells])
    return [
        part.T.unflatten(1, features.cells.shape[1:]) for part, features in zip(projected, maps, strict=True)
    ], fractions.float()
