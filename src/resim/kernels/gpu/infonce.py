"""InfoNCE's pass over all negatives as one Triton kernel: `resim.model.infonce` without logits tiles in memory.

Shapes: B batches (groups), n queries, M negatives, C channels, S splits of the negatives.

Each program loads a block of queries and iterates over its split of the negatives, as in flash attention with the
negatives as both keys and values (Dao et al., arXiv 2205.14135). The mean of the negatives weighted by their softmax is
the gradient of the log-sum-exp. With few queries, several splits keep the whole GPU busy; their results are merged.
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

WIDEST = 256  # channels; more do not fit into a multiprocessor's registers
BLOCK_QUERIES, BLOCK_NEGATIVES = 128, 64
LARGEST_SPLIT = 16


@triton.jit
def _accumulate(
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
    """The log-sum-exp of each query's logits, the largest, and the mean of the negatives weighted by their softmax.

    Args:
        queries: (B, n, C), bfloat16, float16 or float32; C at most 256.
        negatives: (B, M, C) of the same dtype; M at least 1.
        temperature: divides every similarity.
        with_mean: whether to compute the weighted mean.
        splits: parts of the negatives that programs process in parallel; 0: as many as keep the GPU busy.

    Returns:
        (B, n), (B, n) and (B, n, C) or None, float32.
    """
    batches, n, channels = queries.shape
    m = negatives.shape[1]
    queries, negatives = queries.contiguous(), negatives.contiguous()
    blocks = triton.cdiv(n, BLOCK_QUERIES) * batches
    pieces = triton.cdiv(m, BLOCK_NEGATIVES)
    splits = min(splits or _num_splits(blocks, queries.device), pieces)
    per_split = triton.cdiv(pieces, splits) * BLOCK_NEGATIVES
    splits = triton.cdiv(m, per_split)  # no split may be empty
    total, largest = (torch.empty(splits, batches, n, device=queries.device) for _ in range(2))
    mean = torch.empty((splits, batches, n, channels) if with_mean else (1,), device=queries.device)
    kernel: Any = _accumulate
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


def _num_splits(blocks: int, device: torch.device) -> int:
    """The number of splits that keeps most multiprocessors of the GPU busy until the end."""
    if device.type != "cuda":
        return 1
    return even_splits(blocks, torch.cuda.get_device_properties(device).multi_processor_count)


@functools.cache
def even_splits(blocks: int, processors: int) -> int:
    """The number of splits with the least estimated time, if each processor runs one program at a time.

    Each split adds about one percent to the time, for writing and merging its results.
    """
    return min(range(1, LARGEST_SPLIT + 1), key=lambda n: -(-blocks * n // processors) / n * (1 + n / 100))


@functools.cache
def works(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel compiles and is correct on this device, tested once per process. It needs a C compiler."""
    generator = torch.Generator().manual_seed(0)
    queries, negatives = (torch.randn(1, rows, 32, generator=generator).to(device, dtype) for rows in (40, 100))
    try:
        total, largest, mean = visit_negatives(queries, negatives, 1.0, with_mean=True)
        logits = queries.float() @ negatives.float().transpose(1, 2)
        expected = (logits.logsumexp(-1), logits.amax(-1), logits.softmax(-1) @ negatives.float())
        assert mean is not None
        for ours, theirs in zip((total, largest, mean), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
    except Exception as error:  # compilers and drivers raise any exception; the tiles compute the same
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        warnings.warn(
            f"the Triton kernel of InfoNCE does not work here ({reason[0]}): PyTorch's operations are used instead",
            stacklevel=2,
        )
        return False
    return True
