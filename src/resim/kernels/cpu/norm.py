"""The kernels of norm.c on tensors: BatchNorm in training, fused with an addition and a ReLU, forward and backward.

Shapes: maps are (N, C, H, W), bfloat16 in channels-last memory; partial sums (blocks, 2, C) float32.

Coefficients are (4, C) float32: scale, shift, mean and 1 / standard deviation; the normalised value is x * scale +
shift. Slopes are (3, C) float32: the gradient of x is slopes[0] * dz + slopes[1] * x + slopes[2], where dz is the
gradient of the normalised value, before the ReLU.

Source: Ioffe and Szegedy, arXiv 1502.03167.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from resim.kernels.cpu.build import kernels
from resim.layers.grouped_norm import GroupedBatchNorm2d

BLOCK = 128
"""Number of rows in a partial sum, as in norm.c."""


def native() -> ctypes.CDLL:
    """The library of kernels, which must be available."""
    library = kernels()
    assert library is not None
    return library


def floats(*shape: int) -> Tensor:
    """An uninitialised float32 tensor on the CPU, whatever PyTorch's default dtype and device are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def address(x: Tensor | None) -> int | None:
    """The address of a dense tensor's data; None for None."""
    if x is None:
        return None
    assert x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
    return x.data_ptr()


def shape(x: Tensor) -> tuple[int, int, int]:
    """The number of rows (pixels) and channels of a map, and the number of threads."""
    return x.numel() // x.shape[1], x.shape[1], torch.get_num_threads()


def partial_sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """Partial sums of x - origin and of its square, and the (C,) origin."""
    rows, channels, threads = shape(x)
    partial, origin = floats(-(-rows // BLOCK), 2, channels), floats(channels)
    native().resim_norm_sums(address(x), address(origin), address(partial), rows, channels, threads)
    return partial, origin


def coefficients(partial: Tensor, origin: Tensor, rows: int, norm: GroupedBatchNorm2d) -> Tensor:
    """The coefficients (4, C) of a normalisation; also adds the mean and the variance to `norm.pending`.

    Raises:
        ValueError: there is one row only, which has no variance.
    """
    if rows == 1:
        raise ValueError("one value per channel has no variance: use more images, or larger ones")
    blocks, _, channels = partial.shape
    result, weight, bias = floats(4, channels), norm.weight.contiguous(), norm.bias.contiguous()
    native().resim_norm_coefficients(
        address(partial), address(origin), address(weight), address(bias), norm.eps, address(result),
        address(norm.pending), blocks, rows, channels,
    )  # fmt: skip
    return result


def normalize(
    x: Tensor, norm: Tensor, *, addend: Tensor | None = None, addend_norm: Tensor | None = None, inplace: bool = False
) -> Tensor:
    """ReLU(`x` normalised by `norm` + `addend`), the addend normalised by `addend_norm` unless that is None."""
    y = x if inplace else torch.empty_like(x)
    native().resim_norm_apply(address(x), address(norm), address(addend), address(addend_norm), address(y), *shape(x))
    return y


def partial_backward_sums(grad: Tensor, x: Tensor, norm: Tensor, y: Tensor | None = None) -> Tensor:
    """Partial sums of dz and of dz * (x - mean); `grad` is that of the ReLU's output `y`; None: recomputed."""
    rows, channels, threads = shape(x)
    partial = floats(-(-rows // BLOCK), 2, channels)
    native().resim_norm_backward_sums(
        address(grad), address(y), address(x), address(norm), address(partial), rows, channels, threads
    )
    return partial


def slopes(partial: Tensor, norm: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """The slopes (3, C) of a normalisation's backward pass, and the gradients (2, C) of its weight and bias."""
    blocks, _, channels = partial.shape
    result, gradients = floats(3, channels), floats(2, channels)
    native().resim_norm_slopes(
        address(partial), address(norm), address(gradients), address(result), blocks, rows, channels
    )
    return result, gradients


def normalize_backward(
    grad: Tensor, x: Tensor, norm: Tensor, slopes: Tensor, y: Tensor | None = None, *, out: Tensor,
    dz: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Write the gradient of `x` to `out`, which may be `grad` or `x`, and that of the sum before the ReLU to `dz`."""
    tensors = (grad, y, x, norm, slopes, out, dz)
    native().resim_norm_backward(*(address(tensor) for tensor in tensors), *shape(x))
    return out
