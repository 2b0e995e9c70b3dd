"""Optional kernels. The rest of the package calls these functions, through `resim.acceleration` only; see README.md."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from resim.kernels.allocator import keep_memory as keep_memory
from resim.kernels.allocator import keep_memory_if_parted as keep_memory_if_parted
from resim.kernels.allocator import part_memory as part_memory


def describe() -> str:
    """The C kernels that this machine supports, in words."""
    from resim.kernels.cpu.build import kernels, product_kernels

    if kernels() is None:
        return "no C kernels (they need Linux and a C compiler, cc)"
    return "C kernels of norms and products" if product_kernels() is not None else "C kernels of norms"


def has_cpu_kernels() -> bool:
    """Whether this machine supports the C kernels."""
    from resim.kernels.cpu.build import kernels

    return kernels() is not None


def stage_maps(network: nn.Module, images: Tensor) -> dict[str, Tensor] | None:
    """The maps C2 to C5 of a torchvision ResNet by the fused C kernels; None if they do not support the network.

    Args:
        network: a module with conv1, bn1 and layer1 to layer4.
        images: (N, 3, S, S).
    """
    from resim.kernels.cpu import network as fused

    return fused.forward(network, images) if fused.can_fuse(network, images) else None


def convolution(inputs: int, outputs: int, kernel: int, **settings: Any) -> nn.Conv2d:
    """Build an `nn.Conv2d` with a faster backward pass under autocast to bfloat16 on a CPU."""
    from resim.kernels.cpu.weight_grad import TiledConv2d

    return TiledConv2d(inputs, outputs, kernel, **settings)


def gpu_infonce(channels: int, device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    """The module with the Triton kernel of InfoNCE, tested once per process; None if it does not apply."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    module = _triton_module()
    return module if module is not None and channels <= module.WIDEST and module.works(device, dtype) else None


@functools.cache
def _triton_module() -> ModuleType | None:
    try:
        return importlib.import_module("resim.kernels.gpu.infonce")
    except ImportError:  # only PyTorch's builds for GPUs on Linux include Triton
        return None
