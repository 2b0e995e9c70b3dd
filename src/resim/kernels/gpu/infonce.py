"""The visit of all negatives as one Triton kernel, for GPUs: what `infonce.py` does in tiles, with no tile in memory.

Shapes: B batches (groups), n queries, M negatives, C channels, S splits of the negatives.

A program holds a block of queries and passes over its split of the negatives, as flash attention does with the
negatives as both keys and values (Dao et al., arXiv 2205.14135): the weighted mean of the negatives is the gradient of
the log-sum-exp. Splits keep all of a GPU busy where there are few queries; their results are merged at the end.
"""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDEST = 256  # channels; more do not fit a processor's registers
BLOCK_QUERIES, BLOCK_NEGATIVES = 128, 64
LARGEST_SPLIT = 16


@triton.jit
def _visit(
    queries, negatives, total, largest, mean, n, m, per_split, channels, scale,
    WIDTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, WITH_MEAN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    batch, split = tl.program_id(1).to(tl.int64), tl.program_id(2)
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.arange(0, WIDTH)
    there = (rows[:, None] < n) & (columns[None, :] < channels)
    places = rows[:, None].to(tl.int64) * channels + columns[None, :]
    q = tl.load(queries + batch * n * channels + places, mask=there, other=0.0)
    top = tl.full([BLOCK_N], float("-inf"), tl.float32)
    sums = tl.zeros([BLOCK_N], tl.float32)
    weighted = tl.zeros([BLOCK_N, WIDTH], tl.float32)
    first = split * per_split
    last = tl.minimum(first + per_split, m)
    for start in range(first, last, BLOCK_M):
        cells = start + tl.arange(0, BLOCK_M)
        inside = (cells[:, None] < last) & (columns[None, :] < channels)
        at = batch * m * channels + cells[:, None].to(tl.int64) * channels + columns[None, :]
        k = tl.load(negatives + at, mask=inside, other=0.0)
        logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale  # in units of log 2: exp2 is the hardware's
        logits = tl.where(cells[None, :] < last, logits, float("-inf"))
        new_top = tl.maximum(top, tl.max(logits, 1))
        shrink = tl.exp2(top - new_top)
        shares = tl.exp2(logits - new_top[:, None])
        sums = sums * shrink + tl.sum(shares, 1)
        if WITH_MEAN:
            weighted = weighted * shrink[:, None]
            weighted += tl.dot(shares.to(k.dtype), k, input_precision=PRECISION)
        top = new_top
    out = (split * tl.num_programs(1) + batch) * n
    tl.store(total + out + rows, top + tl.log2(sums), mask=rows < n)
    tl.store(largest + out + rows, top, mask=rows < n)
    if WITH_MEAN:
        tl.store(mean + out * channels + places, weighted / sums[:, None], mask=there)


def visit_negatives(
    queries: Tensor, negatives: Tensor, temperature: float, *, with_mean: bool, splits: int = 0
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-sum-exp of a query's logits, their largest, and the mean of the negatives weighted by their softmax.

    Args:
        queries: (B, n, C), bfloat16, float16 or float32; C at most 256.
        negatives: (B, M, C) of the same dtype; M at least 1.
        temperature: divides every similarity.
        with_mean: whether the weighted mean is wanted.
        splits: parts of the negatives that are visited beside each other; 0: as many as the GPU has room for.

    Returns:
        (B, n), (B, n) and (B, n, C), float32.
    """
    batches, n, channels = queries.shape
    m = negatives.shape[1]
    queries, negatives = queries.contiguous(), negatives.contiguous()
    blocks = triton.cdiv(n, BLOCK_QUERIES) * batches
    pieces = triton.cdiv(m, BLOCK_NEGATIVES)
    splits = min(splits or _fill(blocks, queries.device), pieces)
    per_split = triton.cdiv(pieces, splits) * BLOCK_NEGATIVES
    splits = triton.cdiv(m, per_split)  # none may be empty
    total, largest = (torch.empty(splits, batches, n, device=queries.device) for _ in range(2))
    mean = torch.empty((splits, batches, n, channels) if with_mean else (1,), device=queries.device)
    kernel: Any = _visit
    kernel[(triton.cdiv(n, BLOCK_QUERIES), batches, splits)](
        queries, negatives, total, largest, mean, n, m, per_split, channels, math.log2(math.e) / temperature,
        WIDTH=max(16, triton.next_power_of_2(channels)), BLOCK_N=BLOCK_QUERIES, BLOCK_M=BLOCK_NEGATIVES,
        WITH_MEAN=with_mean, PRECISION="ieee", num_warps=8, num_stages=2,
    )  # fmt: skip
    total, largest = total * math.log(2), largest.amax(dim=0) * math.log(2)
    merged = total.logsumexp(dim=0)
    if not with_mean:
        return merged, largest, None
    if splits == 1:
        return merged, largest, mean[0]
    return merged, largest, ((total - merged).exp()[..., None] * mean).sum(dim=0)


def _fill(blocks: int, device: torch.device) -> int:
    """Splits that leave few processors of a GPU without work at the end."""
    if device.type != "cuda":
        return 1
    return even_splits(blocks, torch.cuda.get_device_properties(device).multi_processor_count)


@functools.cache
def even_splits(blocks: int, processors: int) -> int:
    """The splits with which so many blocks of queries are done first; a processor has one program at a time.

    Each costs about a hundredth of the whole: what it finds is written, and merged at the end.
    """
    return min(range(1, LARGEST_SPLIT + 1), key=lambda n: -(-blocks * n // processors) / n * (1 + n / 100))


@functools.cache
def works(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel runs here and is right, tried once a process: it cannot be built without a C compiler."""
    generator = torch.Generator().manual_seed(0)
    queries, negatives = (torch.randn(1, rows, 32, generator=generator).to(device, dtype) for rows in (40, 100))
    try:
        total, largest, mean = visit_negatives(queries, negatives, 1.0, with_mean=True)
        logits = queries.float() @ negatives.float().transpose(1, 2)
        expected = (logits.logsumexp(-1), logits.amax(-1), logits.softmax(-1) @ negatives.float())
        assert mean is not None
        for ours, theirs in zip((total, largest, mean), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
    except Exception as error:  # compilers and drivers raise what they like; the tiles do the same work
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        warnings.warn(f"the Triton kernel of InfoNCE does not work here ({reason[0]}): tiles are used", stacklevel=2)
        return False
    return True
