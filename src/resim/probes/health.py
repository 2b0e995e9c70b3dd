"""Health of features, without labels: effective rank, spread, alignment, uniformity, and warnings of collapse.

Shapes: N vectors, C channels.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from resim.probes.features import at_least_float32

_PAIRS_AT_ONCE = 2**25
COLLAPSED, SPREAD = 0.1, 0.3  # spread below which vectors are collapsed, and above which they were spread
FEW_DIRECTIONS = 0.05  # fraction of the possible directions below which a collapse is partial


@dataclass(frozen=True, kw_only=True)
class Health:
    """Statistics of the vectors of N images."""

    rank: float
    """RankMe: the effective rank."""
    directions: int
    """The maximum rank: the lesser of N and C."""
    spread: float
    """Mean standard deviation of the channels of the unit vectors, times sqrt(C): about 1 if the vectors are uniform on
    the sphere, 0 if all are equal."""
    least_std: float
    """The smallest of these standard deviations, times sqrt(C)."""
    dead: int
    """Number of channels whose standard deviation is at most 1/100 of the mean."""
    uniformity: float
    """log mean exp(-2 d^2) over pairs of unit vectors: 0 if all are equal, about -4 if uniform on the sphere."""
    n: int
    """Number of vectors."""
    alignment: float | None = None
    """Mean squared distance of the unit vectors of two views of an image: 0 if they are equal."""

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def measure_health(vectors: Tensor, others: Tensor | None = None) -> Health:
    """Measure the health of vectors (N, C), N >= 2, and their alignment with `others` (N, C), of other views."""
    deviations = F.normalize(at_least_float32(vectors), dim=1).std(dim=0, correction=0) * math.sqrt(vectors.shape[1])
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
    """The effective rank of (N, C): the exponential of the entropy of the singular values, divided by their sum.

    It is 1 if all vectors are parallel, and the lesser of N and C if all singular values are equal; 0 if all are 0.

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
    """Mean squared distance between the unit vectors of two views of the same images, both (N, C).

    Source: Wang and Isola, arXiv 2005.10242, section 4.1, alpha = 2.
    """
    return float(
        (F.normalize(at_least_float32(vectors), dim=1) - F.normalize(at_least_float32(others), dim=1))
        .square()
        .sum(dim=1)
        .mean()
    )


@torch.no_grad()
def uniformity(vectors: Tensor, t: float = 2.0) -> float:
    """log of the mean of exp(-t d^2) over all pairs of different images, d the distance of their unit vectors (N, C).

    Source: Wang and Isola, arXiv 2005.10242, section 4.1, t = 2.
    """
    x = F.normalize(at_least_float32(vectors), dim=1)
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
    """Age in steps of the oldest key of the queue after `step` steps, and the number of keys in the queue.

    The keys of the last step have age 0. Until the queue is full, it also contains random initial vectors.
    """
    filled = min(step * batch_size, queue_size)
    return max(0, math.ceil(filled / batch_size) - 1), filled


def collapse_warning(health: Health, *, what: str, before: Health | None = None) -> str:
    """A warning if the vectors have collapsed, otherwise empty.

    Args:
        health: the current reading.
        what: name of the vectors, such as "the global vectors".
        before: an earlier reading of the same run; None: there is none.
    """
    if health.spread < COLLAPSED:
        state = f"{what} of all {health.n} images are nearly equal (spread {health.spread:.2f} of 1)"
        if before is not None and before.spread >= SPREAD:
            return f"collapse: {state}; the spread was {before.spread:.2f}. Lower the learning rate or check the images"
        return f"{state}: not yet spread, or collapsed. If this persists, lower the learning rate or check the images"
    if before is not None and health.rank < min(FEW_DIRECTIONS * health.directions, before.rank / 2):
        state = f"{what} have an effective rank of {health.rank:.1f} of {health.directions}"
        return f"partial collapse: {state}; it was {before.rank:.1f}"
    return ""
