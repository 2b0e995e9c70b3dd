"""A ResNet's training pass in bfloat16 on a CPU, with BatchNorm, ReLU, sums and pooling fused with their neighbours."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from resim.kernels.cpu.build import kernels
from resim.kernels.cpu.relu import ReLU
from resim.kernels.cpu.residual import make_residual
from resim.kernels.cpu.stem import POOLING, stem
from resim.layers.grouped_norm import GroupedBatchNorm2d, count_groups


def can_fuse(network: nn.Module, images: Tensor) -> bool:
    """Whether `forward` gives what the network itself gives, but for rounding.

    That is a torchvision ResNet of its usual parts, in training, in bfloat16's autocast on a CPU, where the kernels can
    be compiled and nothing is hooked onto the modules, which are not called. It has no second derivative.
    """
    if not network.training or images.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return False
    if torch.get_autocast_dtype("cpu") is not torch.bfloat16 or torch.compiler.is_compiling() or images.requires_grad:
        return False
    own: Any = network
    size = getattr(own.bn1, "group_size", 0)
    if size < 1 or not len(images) or (len(images) > size and len(images) % size):
        return False
    modules = list(network.modules())
    count = sum(isinstance(module, nn.Conv2d) for module in modules)
    return (
        sum(isinstance(module, GroupedBatchNorm2d) for module in modules) == count
        and all(_is_usual(module, network, size) for module in modules)
        and not any(getattr(module, hooks) for module in modules for hooks in _HOOKS)
        and not any(getattr(nn.modules.module, f"_global{hooks}") for hooks in _HOOKS)
        and kernels() is not None
    )


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _is_usual(module: nn.Module, network: nn.Module, group_size: int) -> bool:
    """Whether it is a part of a ResNet as torchvision has it."""
    if isinstance(module, GroupedBatchNorm2d):
        ours = module.training and module.affine and module.group_size == group_size
        return ours and module.weight.dtype is torch.float32
    if isinstance(module, nn.Conv2d):
        zeros = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return module.bias is None and zeros and module.weight.dtype is torch.float32
    if isinstance(module, nn.MaxPool2d):
        plain = not module.ceil_mode and module.dilation == 1
        return (module.kernel_size, module.stride, module.padding) == POOLING and plain
    if module is network:
        return True
    own: Any = module
    caffe = hasattr(module, "conv3") and own.conv1.stride != (1, 1)  # a bottleneck with its stride in the first 1 x 1
    return type(module) in _usual_types() and not caffe


@functools.cache
def _usual_types() -> tuple[type[nn.Module], ...]:
    from torchvision.models.resnet import BasicBlock, Bottleneck  # slow to import: where there is a network

    return (BasicBlock, Bottleneck, nn.Sequential, nn.ReLU, ReLU)


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
