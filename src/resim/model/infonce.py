"""InfoNCE against many negatives in bounded memory.

Shapes: n queries, M negatives, C channels.

The logits matrix (n x M) of the region losses is too large to keep: at the published size one P4 loss has 42 million
entries a group of 32. It is visited in tiles. While a tile is there its softmax also weighs the negatives, because the
gradient of a log-sum-exp is just that weighted mean (what attention computes with the negatives as both keys and
values), so that nothing is computed again in the backward pass and no tile is kept.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

TILE_QUERIES, TILE_NEGATIVES = 2048, 2048  # 16 MB of float32 logits at a time


class _LogSumExp(torch.autograd.Function):
    """log(sum(exp(queries @ negatives.T / temperature))) a query, and the largest logit, tile by tile."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, negatives: Tensor, temperature: float, matmul_dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(queries.dtype, torch.float32)
        n, width = queries.shape
        total = queries.new_full((n,), -torch.inf, dtype=wide)
        largest = total.clone()
        mean = queries.new_zeros((n, width), dtype=wide) if queries.requires_grad else None
        for rows in _tiles(n, TILE_QUERIES):
            tile_queries = (queries[rows] / temperature).to(matmul_dtype)
            for columns in _tiles(len(negatives), TILE_NEGATIVES):
                tile = negatives[columns].to(matmul_dtype)
                logits = (tile_queries @ tile.T).to(wide)
                largest[rows] = torch.maximum(largest[rows], logits.amax(dim=1))
                before = total[rows]
                after = torch.logaddexp(before, logits.logsumexp(dim=1))
                if mean is not None:
                    shares = logits.sub_(after[:, None]).exp_().to(matmul_dtype)
                    mean[rows] = mean[rows] * (before - after).exp()[:, None] + (shares @ tile).to(wide)
                total[rows] = after
        ctx.temperature, ctx.matmul_dtype = temperature, matmul_dtype
        keep_all = negatives.requires_grad
        ctx.save_for_backward(mean, *((queries, negatives, total) if keep_all else ()))
        ctx.mark_non_differentiable(largest)
        return total, largest

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        grad = grads[0]
        mean, *saved = ctx.saved_tensors
        grad_queries = None if mean is None else grad[:, None] * mean / ctx.temperature
        if not saved:
            return grad_queries, None, None, None
        queries, negatives, total = saved
        grad_negatives = torch.zeros_like(negatives, dtype=total.dtype)
        for rows in _tiles(len(queries), TILE_QUERIES):
            tile_queries = (queries[rows] / ctx.temperature).to(ctx.matmul_dtype)
            for columns in _tiles(len(negatives), TILE_NEGATIVES):
                logits = (tile_queries @ negatives[columns].to(ctx.matmul_dtype).T).to(total.dtype)
                shares = (logits - total[rows, None]).exp_() * grad[rows, None]
                grad_negatives[columns] += (shares.to(ctx.matmul_dtype).T @ tile_queries).to(total.dtype)
        return grad_queries, grad_negatives.to(negatives.dtype), None, None


def _tiles(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


class Contrast(NamedTuple):
    """What `info_nce` finds for each query: (n,) each."""

    loss: Tensor
    """-log softmax of the positive among the positive and all negatives."""
    correct: Tensor
    """bool: the positive is more similar than every negative."""


def info_nce(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    temperature: float = 0.2,
    matmul_dtype: torch.dtype | None = None,
) -> Contrast:
    """InfoNCE of each query with its positive and with negatives that all the queries share.

    Peak memory grows with n + M, not with n * M. Gradients reach all three inputs where they are asked for.

    Args:
        queries: (n, C), L2-normalised.
        positives: (n, C), L2-normalised.
        negatives: (M, C), L2-normalised; M may be 0.
        temperature: divides every similarity.
        matmul_dtype: dtype of the products with the negatives, the sums are in float32 at least;
            default: the queries' own.

    Returns:
        Per-query loss and whether the positive comes first, (n,) each.

    Raises:
        ValueError: the shapes do not belong together.

    Source: van den Oord et al., arXiv 1807.03748; He et al., arXiv 1911.05722, equation 1.
    """
    if (
        queries.dim() != 2
        or positives.shape != queries.shape
        or negatives.dim() != 2
        or negatives.shape[1] != queries.shape[1]
    ):
        raise ValueError(
            f"queries (n, C), positives (n, C) and negatives (M, C) are needed, not {tuple(queries.shape)}, "
            f"{tuple(positives.shape)} and {tuple(negatives.shape)}"
        )
    wide = torch.promote_types(queries.dtype, torch.float32)
    positive = (queries.to(wide) * positives.to(wide)).sum(dim=1) / temperature
    dtype = matmul_dtype or queries.dtype
    total, largest = cast(tuple[Tensor, Tensor], _LogSumExp.apply(queries, negatives, temperature, dtype))
    return Contrast(torch.logaddexp(positive, total) - positive, positive > largest)
