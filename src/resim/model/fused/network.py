"""A ResNet's training pass in bfloat16 on a CPU, with BatchNorm, ReLU, sums and pooling fused with their neighbours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from resim.model.fused.build import kernels
from resim.model.fused.residual import make_residual
from resim.model.fused.stem import POOLING, stem
from resim.model.grouped_norm import GroupedBatchNorm2d, count_groups


def can_fuse(network: nn.Module, images: Tensor) -> bool:
    """Whether `forward` gives what a torchvision ResNet itself gives, but for rounding.

    That is in training, in bfloat16's autocast on a CPU, where the kernels can be compiled and nothing is hooked onto
    the modules, which are not called.
    """
    if not network.training or images.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return False
    if torch.get_autocast_dtype("cpu") is not torch.bfloat16 or torch.compiler.is_compiling() or images.requires_grad:
        return False
    own: Any = network
    modules = list(network.modules())
    norms = [module for module in modules if hasattr(module, "running_mean")]
    size = getattr(own.bn1, "group_size", 0)
    return (
        (own.maxpool.kernel_size, own.maxpool.stride, own.maxpool.padding) == POOLING
        and len(norms) == sum(isinstance(module, nn.Conv2d) for module in modules)
        and size > 0
        and (len(images) <= size or len(images) % size == 0)
        and all(_is_ours(norm, size) for norm in norms)
        and not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
        and not any(module._backward_hooks or module._backward_pre_hooks for module in modules)
        and kernels() is not None
    )


def _is_ours(norm: nn.Module, group_size: int) -> bool:
    return (
        isinstance(norm, GroupedBatchNorm2d)
        and norm.training
        and norm.weight.dtype is torch.float32
        and norm.group_size == group_size
    )


def forward(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What a torchvision ResNet's stages give, C2 to C5, group by group."""
    own: Any = network
    found = [_forward(own, group) for group in images.chunk(count_groups(len(images), own.bn1.group_size))]
    return found[0] if len(found) == 1 else {stage: torch.cat([maps[stage] for maps in found]) for stage in found[0]}


def _forward(own: Any, images: Tensor) -> dict[str, Tensor]:
    x = stem(images, own.conv1, own.bn1)
    maps = {}
    for stage in range(1, 5):
        for block in getattr(own, f"layer{stage}"):
            x = make_residual(block)(x)
        maps[f"C{stage + 1}"] = x
    return maps
