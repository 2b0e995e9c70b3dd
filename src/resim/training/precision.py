"""The precision of a run: bfloat16 where it is faster. It is chosen once and written to config.json."""

from __future__ import annotations

import time
from typing import Literal

import torch
import torch.nn.functional as F

from resim.acceleration import kernels


def choose_precision(precision: Literal["auto", "float32", "bf16"], device: torch.device) -> Literal["float32", "bf16"]:
    """Resolve "auto" to bf16 where the device supports it and it is faster.

    A GPU reports whether it supports bfloat16. On a CPU, whose instruction set does not determine the speed, a
    convolution of a typical size is timed in both precisions, in about a tenth of a second.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bf16" if _seconds(torch.bfloat16) * 1.25 < _seconds(torch.float32) else "float32"


def describe_precision(precision: str, device: torch.device) -> str:
    """The precision in words; on a CPU also whether bfloat16 has fused kernels there."""
    if precision != "bf16" or device.type != "cpu":
        return precision
    package = kernels()
    if package is None:
        return "bf16 without fused kernels"
    return "bf16 with fused kernels" if package.has_cpu_kernels() else f"bf16: {package.describe()}"


def _seconds(dtype: torch.dtype) -> float:
    """Shortest of five runs of a 3 x 3 convolution of 8 images of 128 channels, 28 x 28."""
    images = torch.zeros(8, 128, 28, 28, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.zeros(128, 128, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
    best = float("inf")
    with torch.inference_mode():
        for _ in range(6):  # the first one also sets up the library
            start = time.perf_counter()
            F.conv2d(images, weight, padding=1)
            best = min(best, time.perf_counter() - start)
    return best
