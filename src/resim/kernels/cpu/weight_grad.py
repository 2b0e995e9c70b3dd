"""The kernels of weight_grad.c: weight gradients of convolutions, fused with BatchNorm's backward pass or alone."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from resim.kernels.cpu import norm as norms
from resim.kernels.cpu.build import product_kernels
from resim.kernels.cpu.layer import Layer, Saved, convolution_gradients, like_weight

LANES = 32
"""The number of channels must be a multiple of this; for a stem, kernel width times input channels is at most this."""
_GEOMETRIES = (((3, 3), (1, 1), (1, 1)), ((3, 3), (1, 1), (2, 2)), ((1, 1), (0, 0), (1, 1)))
"""Supported kernels, paddings and strides."""


class _Output(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("grad", "y", "x", "norm", "slopes", "out", "dz")),
        *((name, ctypes.c_int64) for name in ("images", "height", "width", "outputs")),
    )


class _Work(ctypes.Structure):
    _fields_ = (
        ("of", _Output),
        *((name, ctypes.c_void_p) for name in ("input", "input_norm", "grad_weight", "space")),
        *((name, ctypes.c_int64) for name in ("input_height", "input_width", "inputs", "kernel", "stride", "padding")),
        ("threads", ctypes.c_int64),
    )


def fits(conv: nn.Conv2d) -> bool:
    """Whether `weight_grad` supports this convolution on this machine."""
    geometry = (conv.kernel_size, conv.padding, conv.stride)
    is_plain = geometry in _GEOMETRIES and conv.dilation == (1, 1) and conv.groups == 1
    is_plain = is_plain and conv.padding_mode == "zeros"
    is_aligned = conv.in_channels % LANES == 0 and conv.out_channels % LANES == 0
    return is_plain and is_aligned and product_kernels() is not None


def fits_stem(conv: nn.Conv2d) -> bool:
    """Whether `weight_grad` supports this first convolution of a network on this machine."""
    kernel, padding = conv.kernel_size[0], conv.padding
    is_plain = conv.kernel_size == (kernel, kernel) and conv.dilation == (1, 1) and conv.groups == 1
    is_square = conv.stride[0] == conv.stride[1] and not isinstance(padding, str) and padding[0] == padding[1] < kernel
    fits_lanes = conv.out_channels % LANES == 0 and conv.in_channels < LANES and kernel * conv.in_channels <= LANES
    is_plain = is_plain and conv.padding_mode == "zeros"
    return is_plain and is_square and fits_lanes and product_kernels() is not None


def weight_grad(
    conv: nn.Conv2d,
    x: Tensor,
    grad: Tensor,
    *,
    x_norm: Tensor | None = None,
    product: Tensor | None = None,
    norm: Tensor | None = None,
    slopes: Tensor | None = None,
    y: Tensor | None = None,
    out: Tensor | None = None,
    dz: Tensor | None = None,
) -> Tensor:
    """The gradient of a convolution's weight, in float32.

    Args:
        conv: a convolution for which `fits` holds, or `fits_stem` if it has fewer than 32 input channels.
        x: (N, C, H, W) bfloat16 in channels-last memory, the input of the convolution.
        grad: likewise, the gradient of its output or, with `product`, of the ReLU after its BatchNorm.
        x_norm: (4, C) coefficients that normalise `x`, before a ReLU; None: neither. Not for a stem.
        product: the output of the convolution, if its BatchNorm is fused.
        norm: (4, outputs) coefficients of that BatchNorm.
        slopes: (3, outputs) coefficients of its backward pass.
        y: the output of the ReLU, if an addition comes before it.
        out: receives the gradient of `product`; may be `grad` or `product`. None: not needed.
        dz: receives the gradient of the sum before the ReLU. None: not needed.
    """
    tensors = {"grad": grad, "y": y, "x": product, "norm": norm, "slopes": slopes, "out": out, "dz": dz}
    images, outputs, height, width = grad.shape
    if not grad.numel():
        return torch.zeros_like(conv.weight, dtype=torch.float32)
    maps = (x, *(tensor for name, tensor in tensors.items() if name not in ("norm", "slopes") and tensor is not None))
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in maps)
    output = _Output(*(norms.address(tensor) for tensor in tensors.values()), images, height, width, outputs)
    kernel, inputs, threads = conv.kernel_size[0], conv.in_channels, torch.get_num_threads()
    result = norms.floats(outputs, kernel, kernel, inputs)
    work = _Work(
        of=output, input=norms.address(x), input_norm=norms.address(x_norm), grad_weight=norms.address(result),
        input_height=x.shape[2], input_width=x.shape[3], inputs=inputs, kernel=kernel, stride=conv.stride[0],
        padding=int(conv.padding[0]), threads=threads,
    )  # fmt: skip
    name, library = "weight_grad" if inputs % LANES == 0 else "stem_weight_grad", _library()
    # allocated here, on the heap with its large pages: with allocations by each thread, products can take twice as long
    space = torch.empty(getattr(library, f"resim_{name}_space")(ctypes.byref(work)), dtype=torch.uint8, device="cpu")
    work.space = norms.address(space)
    getattr(library, f"resim_{name}")(ctypes.byref(work))
    return like_weight(result.flatten(1), conv.weight) if kernel == 1 else result.permute(0, 3, 1, 2)


def _library() -> Any:
    return product_kernels()


class TiledLayer(Layer):
    """A layer that computes the gradient of its weight in the same pass as that of its product.

    Computes the same as `Layer` up to rounding.
    """

    def _pass_norm(self, saved: Saved, grad: Tensor, slopes: Tensor, out: Tensor, dz: Tensor | None) -> Tensor:
        return weight_grad(
            self.conv, saved.x, grad, x_norm=saved.x_norm, product=saved.product, norm=saved.norm, slopes=slopes,
            y=saved.y, out=out, dz=dz,
        )  # fmt: skip


class TiledConv2d(nn.Conv2d):
    """An `nn.Conv2d` that uses `weight_grad` under autocast to bfloat16 if `fits` holds.

    It then has no second derivative and does not support the transforms of torch.func.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in torch.nn
        """As `nn.Conv2d`."""
        if torch.compiler.is_compiling() or not self._fits(input):
            return super().forward(input)
        x = input.contiguous(memory_format=torch.channels_last)
        out: Any = _Convolution.apply(self, x, self.weight, self.bias)
        return out

    def _fits(self, x: Tensor) -> bool:
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return False
        is_bfloat16 = x.dtype is torch.bfloat16 and torch.get_autocast_dtype("cpu") is torch.bfloat16
        has_memory = type(x) is Tensor  # no fake tensor
        return has_memory and is_bfloat16 and self.weight.dtype is torch.float32 and x.dim() == 4 and fits(self)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.conv = conv
        copy = weight.to(torch.bfloat16)
        ctx.save_for_backward(x, copy, weight)
        padding: Any = conv.padding
        y = torch.conv2d(x, copy, None if bias is None else bias.to(x.dtype), conv.stride, padding)
        return y.contiguous(memory_format=torch.channels_last)

    @staticmethod
    @once_differentiable
    @torch.autocast("cpu", enabled=False)
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        x, copy, _ = ctx.saved_tensors
        conv: nn.Conv2d = ctx.conv
        _, of_x, of_weight, of_bias = ctx.needs_input_grad
        grad, grad_x = grads[0].contiguous(memory_format=torch.channels_last), None
        if of_x:
            grad_x = convolution_gradients(conv, grad, x, copy, [True, False, False])[0]
        grad_weight = weight_grad(conv, x, grad) if of_weight else None
        return None, grad_x, grad_weight, grad.sum((0, 2, 3), dtype=torch.float32) if of_bias else None
