"""The kernels of norm.c on tensors: training's BatchNorm with the ReLU after it, forward and back.

Shapes: maps are (N, C, H, W), bfloat16 in channels-last memory; coefficients (4, C) and slopes (3, C) float32; partial
sums (blocks, 2, C) float32.

Source: Ioffe and Szegedy, arXiv 1502.03167.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from resim.kernels.cpu.build import kernels
from resim.layers.grouped_norm import GroupedBatchNorm2d

BLOCK = 128
"""Rows of a partial sum, as in norm.c."""


def native() -> ctypes.CDLL:
    """The kernels, which must be there."""
    found = kernels()
    assert found is not None
    return found


def floats(*shape: int) -> Tensor:
    """Room for float32 on the CPU, whatever PyTorch's defaults are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def address(x: Tensor | None) -> int | None:
    """Where the data of a tensor lie, which must be dense."""
    if x is None:
        return None
    assert x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
    return x.data_ptr()


def shape(x: Tensor) -> tuple[int, int, int]:
    """Rows (pixels) and channels of a map, and how many threads there are."""
    return x.numel() // x.shape[1], x.shape[1], torch.get_num_threads()


def see(x: Tensor) -> tuple[Tensor, Tensor]:
    """Partial sums of a map, and the (C,) origin from which they are taken."""
    rows, channels, threads = shape(x)
    partial, origin = floats(-(-rows // BLOCK), 2, channels), floats(channels)
    native().resim_norm_sums(address(x), address(origin), address(partial), rows, channels, threads)
    return partial, origin


def coefficients(partial: Tensor, origin: Tensor, rows: int, norm: GroupedBatchNorm2d) -> Tensor:
    """(4, C): scale, shift, mean, 1 / standard deviation. Mean and variance are added to `norm.pending`.

    Raises:
        ValueError: a single row has no variance.
    """
    if rows == 1:
        raise ValueError("a batch of one value a channel has no variance: more images, or larger ones, are needed")
    blocks, _, channels = partial.shape
    found, weight, bias = floats(4, channels), norm.weight.contiguous(), norm.bias.contiguous()
    native().resim_norm_coefficients(
        address(partial), address(origin), address(weight), address(bias), norm.eps, address(found),
        address(norm.pending), blocks, rows, channels,
    )  # fmt: skip
    return found


def normalize(
    x: Tensor, norm: Tensor, *, beside: Tensor | None = None, beside_norm: Tensor | None = None, inplace: bool = False
) -> Tensor:
    """ReLU of `x` normalised by the coefficients `norm`, plus `beside`, itself normalised by `beside_norm` if given."""
    y = x if inplace else torch.empty_like(x)
    native().resim_norm_apply(address(x), address(norm), address(beside), address(beside_norm), address(y), *shape(x))
    return y


def see_backward(grad: Tensor, x: Tensor, norm: Tensor, y: Tensor | None = None) -> Tensor:
    """Partial sums of the gradient; `grad` is that of the ReLU's output `y`, made again from `x` if not given."""
    rows, channels, threads = shape(x)
    partial = floats(-(-rows // BLOCK), 2, channels)
    native().resim_norm_backward_sums(
        address(grad), address(y), address(x), address(norm), address(partial), rows, channels, threads
    )
    return partial


def slopes(partial: Tensor, norm: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """(3, C) slopes, by which gradients pass the normalisation, and (2, C) gradients of its weight and bias."""
    blocks, _, channels = partial.shape
    found, gradients = floats(3, channels), floats(2, channels)
    native().resim_norm_slopes(
        address(partial), address(norm), address(gradients), address(found), blocks, rows, channels
    )
    return found, gradients


def normalize_backward(
    grad: Tensor, x: Tensor, norm: Tensor, slopes: Tensor, y: Tensor | None = None, *, into: Tensor,
    dz: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The gradient of `x`, into `into` (which may be `grad` or `x`), and of what entered the ReLU, into `dz`."""
    seen = (grad, y, x, norm, slopes, into, dz)
    native().resim_norm_backward(*(address(tensor) for tensor in seen), *shape(x))
    return into
