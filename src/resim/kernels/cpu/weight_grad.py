"""The kernels of weight_grad.c: gradients of convolutions' weights, between BatchNorms and alone."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from resim.kernels.cpu import norm as norms
from resim.kernels.cpu.build import product_kernels
from resim.kernels.cpu.layer import Layer, Seen, convolution_gradients, like_weight

LANES = 32
"""Channels are a multiple of it; of a stem's input, a line of the kernel has at most as many values."""
_GEOMETRIES = (((3, 3), (1, 1), (1, 1)), ((3, 3), (1, 1), (2, 2)), ((1, 1), (0, 0), (1, 1)))
"""Kernel, padding and stride."""


class _Output(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("grad", "y", "x", "norm", "slopes", "into", "dz")),
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
    """Whether `weight_grad` can do it on this machine."""
    geometry = (conv.kernel_size, conv.padding, conv.stride)
    usual = geometry in _GEOMETRIES and conv.dilation == (1, 1) and conv.groups == 1 and conv.padding_mode == "zeros"
    whole = conv.in_channels % LANES == 0 and conv.out_channels % LANES == 0
    return usual and whole and product_kernels() is not None


def stem_fits(conv: nn.Conv2d) -> bool:
    """Whether `weight_grad` can do it on this machine for a network's first convolution."""
    kernel, padding = conv.kernel_size[0], conv.padding
    usual = conv.kernel_size == (kernel, kernel) and conv.dilation == (1, 1) and conv.groups == 1
    square = conv.stride[0] == conv.stride[1] and not isinstance(padding, str) and padding[0] == padding[1] < kernel
    whole = conv.out_channels % LANES == 0 and conv.in_channels < LANES and kernel * conv.in_channels <= LANES
    usual = usual and conv.padding_mode == "zeros"
    return usual and square and whole and product_kernels() is not None


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
    into: Tensor | None = None,
    dz: Tensor | None = None,
) -> Tensor:
    """The gradient of a convolution's weight, in float32.

    Args:
        conv: one that `fits`, or `stem_fits` if it has too few inputs for that.
        x: (N, C, H, W) bfloat16 in channels-last memory, its input.
        grad: likewise, the gradient of what it gave; with `product`, of the ReLU after its BatchNorm.
        x_norm: (4, C) coefficients by which `x` was normalised before a ReLU; not for a stem.
        product: what it gave.
        norm: (4, outputs) coefficients of its BatchNorm.
        slopes: by which gradients pass that.
        y: what the ReLU gave, where it came after a sum.
        into: where the gradient of `product` is written, if it is wanted: perhaps `grad` or `product` themselves.
        dz: where the gradient of what entered the ReLU is written, if it is wanted.
    """
    tensors = {"grad": grad, "y": y, "x": product, "norm": norm, "slopes": slopes, "into": into, "dz": dz}
    images, outputs, height, width = grad.shape
    if not grad.numel():
        return torch.zeros_like(conv.weight, dtype=torch.float32)
    maps = (x, *(tensor for name, tensor in tensors.items() if name not in ("norm", "slopes") and tensor is not None))
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in maps)
    of = _Output(*(norms.address(tensor) for tensor in tensors.values()), images, height, width, outputs)
    kernel, inputs, threads = conv.kernel_size[0], conv.in_channels, torch.get_num_threads()
    found = norms.floats(outputs, kernel, kernel, inputs)
    work = _Work(
        of=of, input=norms.address(x), input_norm=norms.address(x_norm), grad_weight=norms.address(found),
        input_height=x.shape[2], input_width=x.shape[3], inputs=inputs, kernel=kernel, stride=conv.stride[0],
        padding=int(conv.padding[0]), threads=threads,
    )  # fmt: skip
    name, library = "weight_grad" if inputs % LANES == 0 else "stem_weight_grad", _library()
    # room from the heap, whose pages are large: in a thread's own, products of many rows take twice as long at times
    space = torch.empty(getattr(library, f"resim_{name}_space")(ctypes.byref(work)), dtype=torch.uint8, device="cpu")
    work.space = norms.address(space)
    getattr(library, f"resim_{name}")(ctypes.byref(work))
    return like_weight(found.flatten(1), conv.weight) if kernel == 1 else found.permute(0, 3, 1, 2)


def _library() -> Any:
    return product_kernels()


class TiledLayer(Layer):
    """One the gradient of whose weight is found while that of its product passes the normalisation.

    The same results as `Layer` but for rounding.
    """

    def _pass_norm(self, seen: Seen, grad: Tensor, slopes: Tensor, into: Tensor, dz: Tensor | None) -> Tensor:
        return weight_grad(
            self.conv, seen.x, grad, x_norm=seen.x_norm, product=seen.product, norm=seen.norm, slopes=slopes, y=seen.y,
            into=into, dz=dz,
        )  # fmt: skip


class TiledConv2d(nn.Conv2d):
    """An `nn.Conv2d` whose weight gets its gradient from `weight_grad` where that fits, in bfloat16's autocast.

    There it has no second derivative, and torch.func's transforms refuse it.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - PyTorch's own name
        """As `nn.Conv2d`."""
        if torch.compiler.is_compiling() or not self._fits(input):
            return super().forward(input)
        x = input.contiguous(memory_format=torch.channels_last)
        out: Any = _Convolution.apply(self, x, self.weight, self.bias)
        return out

    def _fits(self, x: Tensor) -> bool:
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return False
        low_precision = x.dtype is torch.bfloat16 and torch.get_autocast_dtype("cpu") is torch.bfloat16
        real = type(x) is Tensor  # not a stand-in without memory
        return real and low_precision and self.weight.dtype is torch.float32 and x.dim() == 4 and fits(self)


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
