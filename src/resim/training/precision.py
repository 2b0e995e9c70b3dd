"""bfloat16 where it is faster, decided once a run and written down."""

from __future__ import annotations

import time
from typing import Literal

import torch
import torch.nn.functional as F

from resim.acceleration import kernels


def choose_precision(asked: Literal["auto", "float32", "bf16"], device: torch.device) -> Literal["float32", "bf16"]:
    """The precision to run in: what was asked for, or bf16 where the device has it and it is faster.

    A GPU is asked whether it has bfloat16. On a CPU a convolution of the usual size is timed in both, in about a tenth
    of a second: instructions alone do not tell.
    """
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bf16" if _seconds(torch.bfloat16) * 1.25 < _seconds(torch.float32) else "float32"


def tell_precision(precision: str, device: torch.device) -> str:
    """The precision in words: on a CPU also whether bfloat16 has kernels of its own there."""
    if precision != "bf16" or device.type != "cpu":
        return precision
    fast = kernels()
    if fast is None:
        return "bf16 without fused kernels"
    return "bf16 with fused kernels" if fast.has_cpu_kernels() else f"bf16: {fast.describe()}"


def _seconds(dtype: torch.dtype) -> float:
    """Best of five of a 3 x 3 convolution forward, 8 images of 128 channels at 28 x 28."""
    images = torch.zeros(8, 128, 28, 28, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.zeros(128, 128, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
    best = float("inf")
    with torch.inference_mode():
        for _ in range(6):  # the first also sets the library up
            start = time.perf_counter()
            F.conv2d(images, weight, padding=1)
            best = min(best, time.perf_counter() - start)
    return best
