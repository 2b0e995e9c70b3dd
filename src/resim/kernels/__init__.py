"""Optional speed: what the rest of the package may call, through `resim.acceleration` alone. README.md says more."""

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
    """The C kernels of this machine in words."""
    from resim.kernels.cpu.build import kernels, product_kernels

    if kernels() is None:
        return "no C kernels (they need Linux and a C compiler, cc)"
    return "C kernels of norms and products" if product_kernels() is not None else "C kernels of norms"


def has_cpu_kernels() -> bool:
    """Whether the C kernels run on this machine."""
    from resim.kernels.cpu.build import kernels

    return kernels() is not None


def stage_maps(network: nn.Module, images: Tensor) -> dict[str, Tensor] | None:
    """A torchvision ResNet's maps C2 to C5 by the fused C kernels; None where the network has to run as it is.

    Args:
        network: with conv1, bn1 and layer1 to layer4.
        images: (N, 3, S, S).
    """
    from resim.kernels.cpu import network as fused

    return fused.forward(network, images) if fused.can_fuse(network, images) else None


def convolution(inputs: int, outputs: int, kernel: int, **settings: Any) -> nn.Conv2d:
    """An `nn.Conv2d`, quicker in bfloat16's autocast on a CPU."""
    from resim.kernels.cpu.weight_grad import TiledConv2d

    return TiledConv2d(inputs, outputs, kernel, **settings)


def quicken_relus(module: nn.Module) -> None:
    """Replace every nn.ReLU in `module` by one that is quicker for bfloat16 on a CPU."""
    from resim.kernels.cpu.relu import quicken_relus

    quicken_relus(module)


def update_softmax(logits: Tensor, largest: Tensor, sums: Tensor) -> Tensor | None:
    """Take a tile of logits into a running softmax, in one pass over it.

    Args:
        logits: (n, M) bfloat16 on a CPU; becomes exp(logits - largest).
        largest: (n,) float32, the largest logit so far; updated.
        sums: (n,) float32, sum of exponentials relative to `largest`; updated.

    Returns:
        (n,), the factor by which what was summed before has shrunk; None, and nothing is changed, where there are no
        kernels for it.
    """
    from resim.kernels.cpu.build import kernels

    if logits.device.type != "cpu" or logits.dtype is not torch.bfloat16 or sums.dtype is not torch.float32:
        return None
    library = kernels()
    if library is None:
        return None
    kept = torch.empty_like(sums)
    pointers = (tensor.data_ptr() for tensor in (logits, largest, sums, kept))
    library.resim_exponentials(*pointers, *logits.shape, torch.get_num_threads())
    return kept


def gpu_infonce(channels: int, device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    """The module with the Triton kernel of InfoNCE, tried once a process; None where it cannot be used."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    module = _triton_module()
    return module if module is not None and channels <= module.WIDEST and module.works(device, dtype) else None


@functools.cache
def _triton_module() -> ModuleType | None:
    try:
        return importlib.import_module("resim.kernels.gpu.infonce")
    except ImportError:  # Triton comes with PyTorch's builds for GPUs on Linux alone
        return None
