"""Weights in bfloat16 on a CPU, made while a key encoder follows its query encoder."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping, Sequence

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.weak import WeakIdKeyDictionary

from resim.model.fused import norm as norms
from resim.model.fused.build import kernels

_kept: MutableMapping[Tensor, tuple[int, Tensor]] = WeakIdKeyDictionary()
"""Of some weights: in which version they were, and what they were in bfloat16."""


def low(weight: Tensor) -> Tensor:
    """A weight in bfloat16: what `follow` kept of it, unless it has another version now, else a copy.

    Fused optimisers move weights without telling so in the version: `forget` comes before them.
    """
    kept = _kept.get(weight)
    return kept[1] if kept is not None and kept[0] == weight._version else weight.to(torch.bfloat16)


def forget(weights: Iterable[Tensor]) -> None:
    """Let go of what `follow` kept."""
    for weight in weights if _kept else ():
        _kept.pop(weight, None)


@torch.no_grad()
def follow(averages: Sequence[Tensor], values: Sequence[Tensor], momentum: float, *, copies: bool = True) -> None:
    """averages = momentum * averages + (1 - momentum) * values, in place; `torch.lerp` but for a rounding at most.

    Args:
        averages: those of a key encoder.
        values: those of its query encoder.
        momentum: of the averages, from 0 to 1.
        copies: whether, in bfloat16's autocast on a CPU, the same pass over memory makes what convolutions will read:
            the weights of both in bfloat16, for `low`, until `forget`.
    """
    if not (torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16) or not kernels():
        get_ema_multi_avg_fn(momentum)(list(averages), list(values), 0)
        return
    for average, value in zip(averages, values, strict=True):
        if not _fits(average, value):
            get_ema_multi_avg_fn(momentum)([average], [value], 0)
            continue
        pair = average, value
        lows = [torch.empty_like(each, dtype=torch.bfloat16) for each in pair] if copies and average.dim() == 4 else []
        pointers = (norms.address(tensor) for tensor in (*pair, *(lows or (None, None))))
        norms.native().resim_follow(*pointers, 1 - momentum, average.numel(), torch.get_num_threads())
        torch.autograd.graph.increment_version(average)
        for weight, copy in zip(pair, lows, strict=False):
            _kept[weight] = (weight._version, copy)


def _fits(average: Tensor, value: Tensor) -> bool:
    usual = all(x.device.type == "cpu" and x.dtype is torch.float32 for x in (average, value))
    dense = average.is_contiguous() or average.is_contiguous(memory_format=torch.channels_last)
    return usual and dense and average.stride() == value.stride()
