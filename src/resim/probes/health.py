"""Health of features without labels: how many directions they use, how they spread, and whether they collapse.

Shapes: N vectors, C channels.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_PAIRS_AT_ONCE = 2**25
COLLAPSED, SPREAD = 0.1, 0.3  # of the spread of vectors that point everywhere
FEW_DIRECTIONS = 0.05  # of those that there could be


@dataclass(frozen=True, kw_only=True)
class Health:
    """What the vectors of N images look like together."""

    rank: float
    """RankMe: the effective number of directions that are used."""
    directions: int
    """The number that there could be: the lesser of N and C."""
    spread: float
    """Mean standard deviation of the channels of the unit vectors, times sqrt(C): about 1 if they point everywhere, 0
    if all are the same."""
    least_std: float
    """The smallest of these standard deviations, times sqrt(C)."""
    dead: int
    """Channels whose standard deviation is below a hundredth of the mean one."""
    uniformity: float
    """log mean exp(-2 d^2) over pairs of unit vectors: 0 if all are the same, about -4 if they point everywhere."""
    n: int
    """Vectors."""
    alignment: float | None = None
    """Mean squared distance of the unit vectors of two views of an image: 0 if they are the same."""

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def measure_health(vectors: Tensor, others: Tensor | None = None) -> Health:
    """Health of N vectors (N, C), N >= 2, and their alignment with those of other views of the same images (N, C)."""
    deviations = F.normalize(_wide(vectors), dim=1).std(dim=0, correction=0) * math.sqrt(vectors.shape[1])
    return Health(
        rank=rankme(vectors),
        directions=min(vectors.shape),
        spread=float(deviations.mean()),
        least_std=float(deviations.min()),
        dead=int((deviations <= 0.01 * deviations.mean()).sum()),
        uniformity=uniformity(vectors),
        n=len(vectors),
        alignment=None if others is None else alignment(vectors, others),
    )


@torch.no_grad()
def rankme(vectors: Tensor) -> float:
    """The exponential of the entropy of the singular values (N, C), each as its share of their sum.

    Between 1 (all vectors along one line) and the lesser of N and C (all singular values equal); 0 if all are 0.

    Source: Garrido et al., arXiv 2210.02885, equation 1, without its epsilon of 1e-7.
    """
    x = vectors.double()
    # eigenvalues of the smaller Gram matrix are the squared singular values
    gram = x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    if not values.sum() > 0:
        return 0.0
    shares = values / values.sum()
    return float(torch.exp(torch.special.entr(shares).sum()))


@torch.no_grad()
def alignment(vectors: Tensor, others: Tensor) -> float:
    """Mean squared distance of unit vectors (N, C) and those of the same images' other views.

    Source: Wang and Isola, arXiv 2005.10242, section 4.1, alpha = 2.
    """
    return float((F.normalize(_wide(vectors), dim=1) - F.normalize(_wide(others), dim=1)).square().sum(dim=1).mean())


@torch.no_grad()
def uniformity(vectors: Tensor, t: float = 2.0) -> float:
    """log of the mean of exp(-t d^2) over all pairs of different images, d the distance of their unit vectors (N, C).

    Source: Wang and Isola, arXiv 2005.10242, section 4.1, t = 2.
    """
    x = F.normalize(_wide(vectors), dim=1)
    n = len(x)
    if n < 2:
        raise ValueError("uniformity needs two vectors or more")
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for part in x.split(max(1, _PAIRS_AT_ONCE // n)):
        squared = (2 - 2 * part @ x.T).clamp(min=0)
        total += torch.exp(-t * squared).sum(dtype=torch.float64)
    # each vector's pair with itself has exp(0) = 1
    return float(((total - n).clamp(min=0) / (n * (n - 1))).clamp(min=1e-300).log())


def queue_age(step: int, batch_size: int, queue_size: int) -> tuple[int, int]:
    """Age of the queue's oldest key in steps after `step` steps, and how many of its places hold keys by then.

    The keys of the step just done are 0 steps old. Places that were never filled hold the random vectors of the start.
    """
    filled = min(step * batch_size, queue_size)
    return max(0, math.ceil(filled / batch_size) - 1), filled


def collapse(health: Health, *, what: str, before: Health | None = None) -> str:
    """What is wrong with the vectors, in plain words; empty if nothing is.

    Args:
        health: as they are now.
        what: the vectors, for people: "the global vectors".
        before: as they were earlier in the same training, or None.
    """
    if health.spread < COLLAPSED:
        told = f"{what} of all {health.n} images are nearly the same (spread {health.spread:.2f} of 1)"
        if before is not None and before.spread >= SPREAD:
            return f"collapse: {told}; the spread was {before.spread:.2f}. Lower the learning rate or check the images"
        return f"{told}: not spread out yet, or collapsed. If it stays so, lower the learning rate or check the images"
    if before is not None and health.rank < min(FEW_DIRECTIONS * health.directions, before.rank / 2):
        told = f"{what} use {health.rank:.1f} of {health.directions} directions"
        return f"partial collapse: {told}; it was {before.rank:.1f}"
    return ""


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
