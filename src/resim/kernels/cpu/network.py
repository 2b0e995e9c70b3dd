"""The training pass of a ResNet in bfloat16 on a CPU, with BatchNorm, ReLU, additions and pooling fused."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from resim.kernels.cpu.build import kernels
from resim.kernels.cpu.residual import build_residual
from resim.kernels.cpu.stem import POOLING, stem
from resim.layers.grouped_norm import GroupedBatchNorm2d, count_groups


def can_fuse(network: Any, images: Tensor) -> bool:
    """Whether `forward` computes what the network itself computes, up to rounding.

    The network must be a torchvision ResNet of the standard modules, in training mode, under autocast to bfloat16 on a
    CPU, and the kernels must compile. No module may have hooks, because the modules are not called. The result has no
    second derivative.
    """
    if not network.training or images.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return False
    if torch.get_autocast_dtype("cpu") is not torch.bfloat16 or torch.compiler.is_compiling() or images.requires_grad:
        return False
    size = getattr(network.bn1, "group_size", 0)
    if size < 1 or not len(images) or (len(images) > size and len(images) % size):
        return False
    modules = list(network.modules())
    num_convolutions = sum(isinstance(module, nn.Conv2d) for module in modules)
    return (
        sum(isinstance(module, GroupedBatchNorm2d) for module in modules) == num_convolutions
        and all(_is_standard(module, network, size) for module in modules)
        and not any(getattr(module, hooks) for module in modules for hooks in _HOOKS)
        and not any(getattr(nn.modules.module, f"_global{hooks}") for hooks in _HOOKS)
        and kernels() is not None
    )


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _is_standard(module: Any, network: nn.Module, group_size: int) -> bool:
    """Whether a module is one that torchvision's ResNets consist of, with its standard settings."""
    if isinstance(module, GroupedBatchNorm2d):
        is_grouped = module.training and module.affine and module.group_size == group_size
        return is_grouped and module.weight.dtype is torch.float32
    if isinstance(module, nn.Conv2d):
        has_zeros = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return module.bias is None and has_zeros and module.weight.dtype is torch.float32
    if isinstance(module, nn.MaxPool2d):
        is_plain = not module.ceil_mode and module.dilation == 1
        return (module.kernel_size, module.stride, module.padding) == POOLING and is_plain
    if module is network:
        return True
    is_caffe = hasattr(module, "conv3") and module.conv1.stride != (1, 1)  # a bottleneck's stride in its first 1 x 1
    return type(module) in _standard_types() and not is_caffe


@functools.cache
def _standard_types() -> tuple[type[nn.Module], ...]:
    from torchvision.models.resnet import BasicBlock, Bottleneck  # here, as it is slow to import

    return (BasicBlock, Bottleneck, nn.Sequential, nn.ReLU)


def forward(network: Any, images: Tensor) -> dict[str, Tensor]:
    """The maps C2 to C5 of a torchvision ResNet, computed one group of images at a time."""
    groups = [_forward(network, group) for group in images.chunk(count_groups(len(images), network.bn1.group_size))]
    if len(groups) == 1:
        return groups[0]
    return {stage: torch.cat([maps[stage] for maps in groups]) for stage in groups[0]}


def _forward(network: Any, images: Tensor) -> dict[str, Tensor]:
    x = stem(images, network.conv1, network.bn1)
    maps = {}
    for stage in range(1, 5):
        for block in getattr(network, f"layer{stage}"):
            x = build_residual(block)(x)
        maps[f"C{stage + 1}"] = x
    return maps
