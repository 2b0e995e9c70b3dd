"""InfoNCE against many negatives in bounded memory. Equation 1 of MoCo; the loss of every similarity of ReSim.

Shapes: B batches (groups, each with its own negatives), n queries, M negatives, C channels.

The logits matrix (n x M) of the region losses is too large to keep: at the published size one P4 loss has 42 million
entries for a group of 32. It is computed in tiles. The gradient of a log-sum-exp with respect to a query is the mean of
the negatives weighted by their softmax, as in attention with the negatives as both keys and values. The forward pass
accumulates this mean with the log-sum-exp, so that backward recomputes nothing and no tile is kept. On GPUs, with
products in 16 bits, one Triton kernel does the same (`kernels/gpu/infonce.py`).
"""

from __future__ import annotations

import itertools
from types import ModuleType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from resim.acceleration import kernels

TILE_QUERIES, TILE_NEGATIVES = 2048, 2048  # 16 MB of float32 logits at a time


class _LogSumExp(torch.autograd.Function):
    """For each query, log(sum(exp(queries @ negatives.T / temperature))) and the largest logit: (B, n) each."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, negatives: Tensor, temperature: float, matmul_dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        kernel = _kernel(queries, negatives, matmul_dtype)
        if kernel is not None:
            total, largest, mean = kernel.visit_negatives(
                queries.to(matmul_dtype), negatives.to(matmul_dtype), temperature, with_mean=queries.requires_grad
            )
        else:
            wide = torch.promote_types(queries.dtype, torch.float32)
            total = queries.new_full(queries.shape[:2], -torch.inf, dtype=wide)
            largest = total.clone()
            mean = queries.new_zeros(queries.shape, dtype=wide) if queries.requires_grad else None
            for batch in range(len(queries)):
                _accumulate(
                    (queries[batch] / temperature).to(matmul_dtype), negatives[batch].to(matmul_dtype),
                    total[batch], largest[batch], None if mean is None else mean[batch],
                )  # fmt: skip
        ctx.temperature, ctx.matmul_dtype = temperature, matmul_dtype
        keep_all = negatives.requires_grad
        ctx.save_for_backward(mean, *((queries, negatives, total) if keep_all else ()))
        ctx.mark_non_differentiable(largest)
        return total, largest

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        grad = grads[0]
        mean, *saved = ctx.saved_tensors
        grad_queries = None if mean is None else grad[..., None] * mean / ctx.temperature
        if not saved:
            return grad_queries, None, None, None
        queries, negatives, total = saved
        grad_negatives = torch.zeros_like(negatives, dtype=total.dtype)
        for batch in range(len(queries)):
            for rows, columns in _tiles(queries.shape[1], negatives.shape[1]):
                tile_queries = (queries[batch, rows] / ctx.temperature).to(ctx.matmul_dtype)
                logits = (tile_queries @ negatives[batch, columns].to(ctx.matmul_dtype).T).to(total.dtype)
                shares = (logits - total[batch, rows, None]).exp_() * grad[batch, rows, None]
                grad_negatives[batch, columns] += (shares.to(ctx.matmul_dtype).T @ tile_queries).to(total.dtype)
        return grad_queries, grad_negatives.to(negatives.dtype), None, None


def _accumulate(queries: Tensor, negatives: Tensor, total: Tensor, largest: Tensor, mean: Tensor | None) -> None:
    """Accumulate the log-sum-exp, the largest logit and the weighted mean over all negatives, tile by tile, in place.

    Args:
        queries: (n, C), divided by the temperature.
        negatives: (M, C).
        total: (n,), receives the log-sum-exp of each query's logits.
        largest: (n,), -infinity at first; receives the largest logit.
        mean: (n, C), zeros at first; receives the mean of the negatives weighted by their softmax. None: not needed.

    Source: Milakov and Gimelshein, arXiv 1805.02867: the sum is kept relative to the largest logit so far.
    """
    wide = total.dtype
    sums = torch.zeros_like(total)
    narrow = queries.dtype is torch.float16  # its largest value, 65,504, is below a sum of many shares
    for rows, columns in _tiles(len(queries), len(negatives)):
        logits = (queries[rows] @ negatives[columns].T).to(wide)
        before = largest[rows].clone()
        largest[rows] = torch.maximum(before, logits.amax(dim=1))
        shares = logits.sub_(largest[rows, None]).exp_()
        shrink = (before - largest[rows]).exp_()
        sums[rows] = sums[rows] * shrink + shares.sum(dim=1)
        if mean is not None:
            weights = shares.sum(dim=1, keepdim=True) if narrow else 1.0
            weighted = ((shares / weights if narrow else shares).to(queries.dtype) @ negatives[columns]).to(wide)
            mean[rows] = mean[rows] * shrink[:, None] + weighted * weights
    total.copy_(largest + sums.log())
    if mean is not None and len(negatives):
        mean /= sums[:, None]


def _tiles(queries: int, negatives: int) -> list[tuple[slice, slice]]:
    """Rows and columns of the tiles; with fewer queries a tile has more negatives."""
    rows = min(max(queries, 1), TILE_QUERIES)
    columns = TILE_QUERIES * TILE_NEGATIVES // rows
    starts = itertools.product(range(0, queries, rows), range(0, negatives, columns))
    return [(slice(i, i + rows), slice(j, j + columns)) for i, j in starts]


def _kernel(queries: Tensor, negatives: Tensor, matmul_dtype: torch.dtype) -> ModuleType | None:
    """The Triton kernel, or None if it does not support these inputs."""
    fast = kernels()
    if fast is None or negatives.requires_grad or negatives.shape[1] == 0 or queries.shape[1] == 0:
        return None
    return fast.gpu_infonce(queries.shape[2], queries.device, matmul_dtype)


class Contrast(NamedTuple):
    """The results of `info_nce` for each query: (n,) or (B, n) each."""

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
    """InfoNCE of each query with its positive, against negatives that all queries share.

    Peak memory grows with n + M, not with n * M. All three inputs receive gradients if they require them.

    Args:
        queries: (n, C), or (B, n, C) if each of B batches has its own negatives; L2-normalised.
        positives: of the same shape, L2-normalised.
        negatives: (M, C) or (B, M, C), L2-normalised; M may be 0.
        temperature: divides every similarity.
        matmul_dtype: dtype of the products with the negatives; None: that of the queries. Sums are in float32 or
            wider.

    Returns:
        The loss of each query, and whether its positive is more similar than every negative.

    Raises:
        ValueError: the shapes do not match.

    Source: van den Oord et al., arXiv 1807.03748; He et al., arXiv 1911.05722, equation 1.
    """
    if (
        queries.dim() not in (2, 3)
        or positives.shape != queries.shape
        or negatives.dim() != queries.dim()
        or (*negatives.shape[:-2], negatives.shape[-1]) != (*queries.shape[:-2], queries.shape[-1])
    ):
        raise ValueError(
            f"queries (n, C), positives (n, C) and negatives (M, C), or batches of them, are needed, not "
            f"{tuple(queries.shape)}, {tuple(positives.shape)} and {tuple(negatives.shape)}"
        )
    wide = torch.promote_types(queries.dtype, torch.float32)
    positive = (queries.to(wide) * positives.to(wide)).sum(dim=-1) / temperature
    batched = (queries, negatives) if queries.dim() == 3 else (queries[None], negatives[None])
    dtype = matmul_dtype or queries.dtype
    total, largest = cast(tuple[Tensor, Tensor], _LogSumExp.apply(*batched, temperature, dtype))
    if queries.dim() == 2:
        total, largest = total[0], largest[0]
    return Contrast(torch.logaddexp(positive, total) - positive, positive > largest)
