"""Weighted k-nearest-neighbour classification.

Shapes: N training images, M test images, C channels, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from resim.probes.config import NEIGHBOURS, TEMPERATURE

_SIMILARITIES_AT_ONCE = 2**25


@torch.no_grad()
def knn_votes(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    *,
    num_classes: int,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """Votes of the k most similar training images for each class, with weight exp(cosine similarity / temperature).

    Args:
        bank: (N, C) features of the training images, of any floating dtype; compared in float32 or wider.
        labels: (N,) int64, classes of the training images.
        queries: (M, C) features of the test images.
        num_classes: K.
        k: number of neighbours, at most N.
        temperature: of the weights.

    Returns:
        (M, K), in float32 or wider, on the device of `bank`.

    Raises:
        ValueError: k is above N or below 1, or the temperature is not positive.

    Source: Wu et al., arXiv 1805.01978, section 3.4.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"k {k}: must be from 1 to the {len(bank)} training images")
    if not temperature > 0:
        raise ValueError(f"temperature {temperature}: must be above 0")
    dtype = torch.promote_types(bank.dtype, torch.float32)
    bank, labels = F.normalize(bank.to(dtype), dim=1), labels.to(bank.device)
    votes = []
    for part in queries.split(max(1, _SIMILARITIES_AT_ONCE // len(bank))):
        similarity = F.normalize(part.to(bank.device, dtype), dim=1) @ bank.T
        nearest, index = similarity.topk(k, dim=1)
        # relative to the nearest: the same proportions of votes, without overflow at small temperatures
        weights = ((nearest - nearest[:, :1]) / temperature).exp()
        votes.append(weights.new_zeros(len(part), num_classes).scatter_add_(1, labels[index], weights))
    return torch.cat(votes)
