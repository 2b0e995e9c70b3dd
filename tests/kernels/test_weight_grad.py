"""Weight gradients by the kernels equal those in float64 up to the rounding of sums in float32."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.grad import conv2d_weight

from product_kinds import PRODUCTS, use
from resim.kernels.cpu import norm as norms
from resim.kernels.cpu import weight_grad as module
from resim.kernels.cpu.weight_grad import TiledConv2d, fits, fits_stem, weight_grad


@pytest.fixture(params=PRODUCTS, autouse=True)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The products by tiles or by registers."""
    use(request.param, monkeypatch)
    return request.param


CASES = {  # images, height, width; inputs, outputs; kernel, stride
    "56 px": ((3, 56, 56), (64, 64), (3, 1)),
    "odd": ((5, 13, 9), (32, 96), (3, 1)),
    "one pixel": ((1, 1, 1), (32, 32), (3, 1)),
    "one line": ((2, 1, 7), (64, 32), (3, 1)),
    "more than a chunk": ((1, 40, 70), (32, 64), (3, 1)),
    "stride 2": ((3, 28, 28), (64, 64), (3, 2)),
    "stride 2, odd": ((3, 15, 9), (32, 64), (3, 2)),
    "stride 2, one pixel": ((2, 1, 1), (32, 32), (3, 2)),
    "many weights": ((4, 14, 14), (192, 192), (3, 1)),
    "many weights, more than a chunk": ((3, 30, 31), (256, 128), (3, 1)),
    "many weights, stride 2": ((5, 14, 11), (128, 256), (3, 2)),
    "1 x 1": ((3, 9, 11), (96, 64), (1, 1)),
    "1 x 1, many weights": ((4, 7, 9), (256, 1024), (1, 1)),
    "1 x 1, many inputs, more than a chunk": ((3, 29, 31), (1024, 256), (1, 1)),
}


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def maps(*shape: int, seed: int) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.bfloat16().to(memory_format=torch.channels_last)


def vectors(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 0.3


def truth(conv: nn.Conv2d, x: Tensor, grad: Tensor) -> Tensor:
    padding: Any = conv.padding
    stride: Any = conv.stride
    return conv2d_weight(x.double(), list(conv.weight.shape), grad.double(), stride=stride, padding=padding)


def relative_error(result: Tensor, expected: Tensor) -> float:
    assert result.shape == expected.shape
    return ((result - expected).norm() / expected.norm()).item()


def make_case(name: str) -> tuple[nn.Conv2d, Tensor, Tensor]:
    """A convolution, its input and the gradient of its output."""
    (images, height, width), (inputs, outputs), (kernel, stride) = CASES[name]
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False).to(memory_format=torch.channels_last)
    assert fits(conv)
    x = maps(images, inputs, height, width, seed=1)
    return conv, x, maps(images, outputs, -(-height // stride), -(-width // stride), seed=2)


@pytest.mark.parametrize("name", list(CASES))
def test_the_gradient_of_a_convolution_alone(name: str, threads: int) -> None:
    conv, x, grad = make_case(name)
    result = weight_grad(conv, x, grad)
    assert result.stride() == conv.weight.stride()
    assert relative_error(result, truth(conv, x, grad)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("summed", [False, True], ids=["ReLU", "ReLU after an addition"])
@pytest.mark.parametrize("name", list(CASES))
def test_the_gradient_through_a_norm(name: str, summed: bool, threads: int) -> None:
    conv, x, grad = make_case(name)
    product, y = maps(*grad.shape, seed=3), maps(*grad.shape, seed=4) if summed else None
    norm, slopes, x_norm = (
        vectors(rows, c, seed=5) for rows, c in ((4, grad.shape[1]), (3, grad.shape[1]), (4, x.shape[1]))
    )
    out, dz = torch.empty_like(grad), torch.empty_like(grad) if summed else None
    grad_product, grad_sum = torch.empty_like(grad), torch.empty_like(grad) if summed else None
    norms.normalize_backward(grad, product, norm, slopes, y, out=grad_product, dz=grad_sum)
    expected = truth(conv, norms.normalize(x, x_norm), grad_product)
    settings: dict[str, Any] = {"x_norm": x_norm, "norm": norm, "slopes": slopes, "y": y, "dz": dz}
    assert relative_error(weight_grad(conv, x, grad, product=product, out=out, **settings), expected) < 1e-4
    assert relative_error(out.double(), grad_product.double()) < 1e-4  # some sums are rounded differently
    assert dz is None or grad_sum is None or torch.equal(dz, grad_sum)
    in_place = product.clone(memory_format=torch.channels_last)
    weight_grad(conv, x, grad, product=in_place, out=in_place, **settings)
    assert torch.equal(in_place, out)
    weight_grad(conv, x, grad, product=product, out=grad, **settings)
    assert torch.equal(grad, out)


def test_with_many_weights_the_number_of_threads_changes_nothing() -> None:
    before, results = torch.get_num_threads(), []
    conv, x, grad = make_case("many weights, more than a chunk")
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(weight_grad(conv, x, grad))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding"),
    [
        ((3, 3, 64, 64), 7, 2, 3),
        ((2, 3, 33, 47), 7, 2, 3),
        ((1, 3, 224, 224), 7, 2, 3),
        ((2, 3, 32, 31), 3, 1, 1),
        ((3, 1, 9, 9), 5, 2, 2),
        ((1, 4, 4, 4), 7, 2, 3),
        ((2, 3, 40, 40), 4, 4, 0),
        ((2, 3, 42, 40), 4, 4, 1),  # lines and columns that no window covers
        ((1, 3, 82, 80), 7, 2, 3),  # a last chunk of fewer tiles
    ],
)
def test_the_gradient_of_a_stem(shape: tuple[int, ...], kernel: int, stride: int, padding: int, threads: int) -> None:
    conv = nn.Conv2d(shape[1], 64, kernel, stride, padding, bias=False)
    assert fits_stem(conv)
    x = maps(*shape, seed=1)
    grad = maps(*torch.conv2d(x, conv.weight.bfloat16(), None, stride, padding).shape, seed=2)
    product, norm, slopes = maps(*grad.shape, seed=3), vectors(4, 64, seed=4), vectors(3, 64, seed=5)
    grad_product = norms.normalize_backward(grad, product, norm, slopes, out=torch.empty_like(grad))
    result = weight_grad(conv, x, grad, product=product, norm=norm, slopes=slopes)
    assert relative_error(result, truth(conv, x, grad_product)) < 1e-4


def test_convolutions_that_are_not_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    others: list[dict[str, Any]] = [
        {"kernel_size": 5, "padding": 2}, {"dilation": 2, "padding": 2}, {"groups": 2}, {"stride": 3}, {"padding": 0},
        {"padding_mode": "reflect"}, {"padding": "same"}, {"in_channels": 48}, {"out_channels": 80}, {"stride": (1, 2)},
        {"kernel_size": 1, "padding": 0, "stride": 2},
    ]  # fmt: skip
    usual: dict[str, Any] = {"in_channels": 64, "out_channels": 64, "kernel_size": 3, "padding": 1}
    assert fits(nn.Conv2d(**usual))
    assert not any(fits(nn.Conv2d(**usual | other)) for other in others)
    usual["in_channels"] = 3
    assert fits_stem(nn.Conv2d(**usual))
    others = [
        {"out_channels": 80}, {"stride": (1, 2)}, {"kernel_size": 11}, {"dilation": 2}, {"padding": "same"},
        {"padding": 3}, {"in_channels": 32, "kernel_size": 1, "padding": 0},
    ]  # fmt: skip
    assert not any(fits_stem(nn.Conv2d(**usual | other)) for other in others)
    monkeypatch.setattr(module, "product_kernels", lambda: None)
    assert not fits_stem(nn.Conv2d(**usual))
    usual["in_channels"] = 64
    assert not fits(nn.Conv2d(**usual))


@pytest.mark.parametrize(("inputs", "kernel", "bias"), [(64, 3, True), (512, 1, True), (96, 3, False)])
def test_a_tiled_convolution_is_as_accurate_as_pytorchs(inputs: int, kernel: int, bias: bool) -> None:
    tiled = TiledConv2d(inputs, 64, kernel, padding=kernel // 2, bias=bias).to(memory_format=torch.channels_last)
    usual = nn.Conv2d(inputs, 64, kernel, padding=kernel // 2, bias=bias).to(memory_format=torch.channels_last)
    usual.load_state_dict(tiled.state_dict())
    x, grad = maps(4, inputs, 11, 12, seed=1), maps(4, 64, 11, 12, seed=2)

    def run(conv: nn.Conv2d, dtype: torch.dtype | None) -> dict[str, Tensor]:
        conv.zero_grad()
        x_run = x.detach().to(dtype or x.dtype, copy=True).requires_grad_()
        conv = conv if dtype is None else conv.to(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is None):
            y = conv(x_run)
        y.backward(grad.to(y.dtype))
        result = {"y": y.detach(), "x": x_run.grad} | {name: p.grad for name, p in conv.named_parameters()}
        return {name: value.double() for name, value in result.items() if value is not None}

    ours, theirs = run(tiled, None), run(usual, None)
    expected = run(usual, torch.float64)
    assert ours.keys() == theirs.keys() == expected.keys()
    assert all(
        relative_error(ours[name], expected[name]) < 1.05 * relative_error(theirs[name], expected[name]) + 1e-6
        for name in ours
    )
    assert relative_error(ours["weight"], expected["weight"]) < 1e-5, "the kernels were not used"
    assert not bias or relative_error(ours["bias"], expected["bias"]) < 1e-6


def test_a_tiled_convolution_that_cannot_use_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(module, "weight_grad", lambda *arguments: calls.append(1) or weight_grad(*arguments))
    conv = TiledConv2d(64, 64, 3, padding=1)

    def uses(x: Tensor, conv: nn.Conv2d = conv, dtype: torch.dtype = torch.bfloat16) -> bool:
        calls.clear()
        with torch.autocast("cpu", dtype):
            y = conv(x)
        y.float().sum().backward()
        return bool(calls)

    x = maps(2, 64, 8, 8, seed=1)
    assert uses(x)
    assert uses(x.requires_grad_())
    assert not uses(x.float())
    assert not uses(x[0])
    assert not uses(x, TiledConv2d(64, 64, 5, padding=2))
    assert not uses(x, dtype=torch.float16)
    frozen = TiledConv2d(64, 64, 3, padding=1)
    frozen.weight.requires_grad_(False)
    assert not uses(x, frozen)
    conv(x.float()).sum().backward()  # without autocast
    assert not calls


def test_a_tiled_convolution_of_any_layout_and_of_an_empty_batch() -> None:
    conv, x = TiledConv2d(64, 32, 3, padding=1), maps(2, 64, 8, 9, seed=1)

    def grads(x: Tensor, around: bool = False) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            y = conv(x)
        weighted = (y.float() * torch.arange(9)).sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=around):
            return list(torch.autograd.grad(weighted, [conv.weight, *conv.parameters()]))

    expected = grads(x)
    wide = maps(2, 64, 8, 18, seed=2)
    wide[..., ::2] = x
    for other in (x.contiguous(), wide[..., ::2]):
        assert all(torch.equal(a, b) for a, b in zip(grads(other), expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(grads(x, around=True), expected, strict=True))
    assert not any(grad.any() for grad in grads(x[:0]))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        grads(mode.from_tensor(x))


def test_the_gradient_does_not_depend_on_the_layout_of_the_weight() -> None:
    conv, x, grad = make_case("1 x 1, many weights")
    expected = weight_grad(conv, x, grad)
    conv.weight = nn.Parameter(conv.weight.detach().transpose(0, 1).contiguous().transpose(0, 1))
    result = weight_grad(conv, x, grad)
    assert torch.equal(result, expected)
    with pytest.raises(AssertionError):
        weight_grad(conv, x.contiguous(), grad)


@pytest.mark.slow
def test_fewer_threads_than_requested() -> None:
    program = """
import torch
from torch import nn
from resim.kernels.cpu.weight_grad import weight_grad
torch.set_num_threads(3)
for inputs in (64, 3):
    conv = nn.Conv2d(inputs, 64, 3, padding=1)
    x, grad = (torch.ones(4, c, 30, 30).bfloat16().to(memory_format=torch.channels_last) for c in (inputs, 64))
    print(weight_grad(conv, x, grad)[:, :, 1, 1].unique().tolist())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True,
        env=os.environ | {"OMP_THREAD_LIMIT": "2", "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    assert done.stdout.split() == ["[3600.0]"] * 2
