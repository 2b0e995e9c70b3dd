"""Fused ResNet blocks on a CPU against PyTorch's modules: their error is no larger than the modules'."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from needs import needs_kernels
from product_kinds import PRODUCTS, needs_products, use
from resim.kernels.cpu import build as build_module
from resim.kernels.cpu import network as fused
from resim.kernels.cpu import norm as norms
from resim.kernels.cpu.build import compile_kernels, kernels, product_kernels
from resim.kernels.cpu.pointwise import ClosingLayer
from resim.kernels.cpu.residual import build_residual
from resim.kernels.cpu.stem import stem
from resim.layers.grouped_norm import GroupedBatchNorm2d, commit_statistics, group_norms
from resim.model.backbone import ResNet


@pytest.fixture(params=["anywhere", *PRODUCTS])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kernels for any processor, and with them the product kernels."""
    use(request.param, monkeypatch)
    return request.param


def nhwc(*shape: int, seed: int) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    return values.bfloat16().to(memory_format=torch.channels_last)


def prepared(module: nn.Module, group_size: int) -> nn.Module:
    """The module in training mode, with grouped norms whose parameters are random."""
    torch.manual_seed(1)
    group_norms(module, group_size)
    for norm in module.modules():
        if isinstance(norm, GroupedBatchNorm2d):
            nn.init.uniform_(norm.weight, -1.5, 1.5)
            nn.init.normal_(norm.bias, std=0.3)
    return module.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]


def make_block(kind: type[Any], inputs: int, width: int, stride: int, **more: Any) -> nn.Module:
    outputs = width * kind.expansion
    downsample = None
    if stride > 1 or inputs != outputs:
        downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    return prepared(kind(inputs, width, stride, downsample, **more), 8)


def everything(
    module: nn.Module, run: Callable[[nn.Module, Tensor], Tensor], x: Tensor, dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """Output, gradients and pending statistics in float64, computed in `dtype`; None: under autocast."""
    module = copy.deepcopy(module)
    x = x.clone(memory_format=torch.channels_last)
    if dtype is not None:
        module, x = module.to(dtype), x.to(dtype)
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is None):
        y = run(module, x)
    grad = nhwc(*y.shape, seed=9).to(y.dtype)
    before = grad.clone()
    y.backward(grad)
    assert torch.equal(grad, before), "the incoming gradient was overwritten"
    results = {"y": y.detach()} | ({} if x.grad is None else {"x": x.grad})
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype is parameter.dtype
        results[name] = parameter.grad
    results |= {f"pending {n}": m.pending for n, m in module.named_modules() if isinstance(m, GroupedBatchNorm2d)}
    return {name: value.double() for name, value in results.items()}


def errors(result: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    assert result.keys() == truth.keys()
    return {name: ((result[name] - truth[name]).norm() / truth[name].norm()).item() for name in truth}


def check_errors(ours: dict[str, float], theirs: dict[str, float]) -> None:
    """Check that the kernels' errors are no larger than those of PyTorch in bfloat16, up to chance in rounding."""
    worse = {name: (error, theirs[name]) for name, error in ours.items() if error > 3 * theirs[name] + 1e-4}
    assert not worse
    assert sum(ours.values()) < 1.15 * sum(theirs.values())


BLOCKS = {
    "bottleneck": (lambda: make_block(Bottleneck, 128, 32, 1), (3, 128, 13, 11)),
    "bottleneck with a shortcut": (lambda: make_block(Bottleneck, 64, 32, 1), (4, 64, 12, 12)),
    "bottleneck of stride 2": (lambda: make_block(Bottleneck, 96, 64, 2), (4, 96, 13, 14)),
    "of odd widths": (lambda: make_block(Bottleneck, 80, 20, 1), (3, 80, 9, 7)),
    "grouped": (lambda: make_block(Bottleneck, 256, 64, 1, groups=32, base_width=4), (3, 256, 8, 8)),
    "wide enough to unfold": (lambda: make_block(Bottleneck, 2048, 512, 1), (8, 2048, 4, 4)),
    "wide enough to unfold, of stride 2": (lambda: make_block(Bottleneck, 1024, 512, 2), (8, 1024, 7, 7)),
    "basic": (lambda: make_block(BasicBlock, 64, 64, 1), (4, 64, 10, 9)),
    "basic of stride 2": (lambda: make_block(BasicBlock, 64, 96, 2), (4, 64, 11, 10)),
}


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize("name", list(BLOCKS))
def test_a_block_is_as_accurate_as_its_modules(name: str, kind: str) -> None:
    make, shape = BLOCKS[name]
    block, x = make(), nhwc(*shape, seed=2).relu()
    truth = everything(block, lambda module, x: module(x), x, torch.float64)
    theirs = errors(everything(block, lambda module, x: module(x), x, None), truth)
    ours = errors(everything(block, lambda module, x: build_residual(module)(x), x, None), truth)
    check_errors(ours, theirs)


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize("name", list(BLOCKS))
def test_backward_changes_none_of_its_inputs(name: str, kind: str) -> None:
    make, shape = BLOCKS[name]
    block, x = make(), nhwc(*shape, seed=2).relu().requires_grad_()
    y = build_residual(block)(x)
    inputs = [x, *block.parameters()]
    first, second = (torch.autograd.grad(y.sum(), inputs, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for parameter, grad in zip(inputs, first, strict=True):
        assert grad.stride() == parameter.stride(), "DistributedDataParallel would copy it"
    with torch.no_grad():
        next(block.parameters()).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@needs_kernels
def test_autocast_around_backward_changes_nothing(kind: str) -> None:
    block, x = make_block(Bottleneck, 64, 32, 1), nhwc(4, 64, 12, 12, seed=2).relu().requires_grad_()
    y = build_residual(block)(x)
    expected = torch.autograd.grad(y.sum(), [x, *block.parameters()], retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        results = torch.autograd.grad(y.sum(), [x, *block.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@needs_kernels
def test_default_dtype_and_parameter_layouts_change_nothing(kind: str) -> None:
    block, x = make_block(Bottleneck, 128, 32, 1), nhwc(3, 128, 9, 9, seed=2).relu()
    expected = everything(block, lambda module, x: build_residual(module)(x), x, None)
    torch.set_default_dtype(torch.float64)
    try:
        results = everything(block, lambda module, x: build_residual(module)(x), x, None)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(results[name], expected[name]) for name in expected)
    strided = copy.deepcopy(block)
    for module in strided.modules():
        if isinstance(module, GroupedBatchNorm2d):
            module.weight = nn.Parameter(module.weight.detach().repeat_interleave(2)[::2])
        elif isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
            module.weight = nn.Parameter(module.weight.detach().transpose(0, 1).contiguous().transpose(0, 1))
    results = everything(strided, lambda module, x: build_residual(module)(x.contiguous()), x, None)
    assert max(errors(results, expected).values()) < 1e-6


@needs_products
def test_several_threads_change_gradients_by_rounding_only() -> None:
    """Each thread has its own sums for gradients; outputs and statistics do not depend on the number of threads."""
    block, x = make_block(Bottleneck, 64, 32, 1), nhwc(7, 64, 40, 41, seed=2).relu()
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(everything(block, lambda module, x: build_residual(module)(x), x, None))
    finally:
        torch.set_num_threads(threads)
    off = errors(results[1], results[0])
    assert not any(error for name, error in off.items() if name == "y" or name.startswith("pending")), off
    assert max(off.values()) < 1e-3, off  # sums in another order, rounded to bfloat16


@needs_products
def test_statistics_are_those_of_the_stored_values() -> None:
    layer = build_residual(make_block(Bottleneck, 128, 32, 1)).layers[0]
    results = layer.forward(layer.conv.weight.detach().bfloat16(), nhwc(1, 128, 5, 7, seed=2), None)
    assert results.product is not None
    variance, mean = torch.var_mean(results.product.double(), dim=(0, 2, 3), correction=0)
    assert torch.allclose(results.norm[2].double(), mean, rtol=1e-5, atol=1e-6)
    assert torch.allclose(results.norm[3].double(), (variance + layer.norm.eps).rsqrt(), rtol=1e-5)


@needs_products
@pytest.mark.parametrize("far", [0.0, 10.0])
def test_statistics_from_the_moments_of_the_input(far: float) -> None:
    """With several parts of rows, and a mean ten times the deviation; after a ReLU it is rarely twice the deviation."""
    layer = ClosingLayer(nn.Conv2d(64, 96, 1, bias=False), GroupedBatchNorm2d(96, 5))
    x = (nhwc(5, 64, 47, 41, seed=2).float() + far).bfloat16()
    weight = layer.conv.weight.detach().bfloat16()
    with torch.no_grad():
        results = layer.forward(weight, x, None)
    variance, mean = torch.var_mean(torch.conv2d(x.double(), weight.double()), dim=(0, 2, 3), correction=0)
    assert torch.allclose(results.norm[2].double(), mean, rtol=1e-5, atol=1e-5)
    assert torch.allclose(results.norm[3].double(), (variance + layer.norm.eps).rsqrt(), rtol=1e-4)


@needs_products
def test_the_kernel_of_each_layer() -> None:
    kernels_of_layers = {
        name: "".join(type(layer).__name__[0] for layer in build_residual(make()).all_layers)
        for name, (make, _) in BLOCKS.items()
    }
    assert kernels_of_layers == {
        "bottleneck": "PTC",
        "bottleneck with a shortcut": "PTCC",
        "bottleneck of stride 2": "PTCC",
        "of odd widths": "LLL",
        "grouped": "PLC",
        "wide enough to unfold": "TTT",
        "wide enough to unfold, of stride 2": "TTTT",
        "basic": "TT",
        "basic of stride 2": "TTT",
    }


@needs_kernels
@pytest.mark.parametrize("width", [48, 64])
@pytest.mark.parametrize("shape", [(3, 3, 31, 29), (2, 3, 64, 64), (2, 3, 18, 16)])
def test_the_stem_is_as_accurate_as_its_modules(shape: tuple[int, ...], width: int, kind: str) -> None:
    conv = nn.Conv2d(3, width, 7, 2, 3, bias=False)
    module = prepared(nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)), 8)
    x = nhwc(*shape, seed=3)

    def ours(module: Any, x: Tensor) -> Tensor:
        return stem(x.detach(), module[0], module[1])

    def theirs(module: nn.Module, x: Tensor) -> Tensor:
        return module(x.detach())

    truth = everything(module, theirs, x, torch.float64)
    check_errors(errors(everything(module, ours, x, None), truth), errors(everything(module, theirs, x, None), truth))


def small_resnet(name: str = "resnet18", group_size: int = 4) -> nn.Module:
    torch.manual_seed(0)
    network = ResNet(name)
    group_norms(network, group_size)
    return network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize(("name", "group_size"), [("resnet18", 4), ("resnet18", 2), ("resnet50", 4)])
def test_a_network_is_as_accurate_as_its_modules(
    name: str, group_size: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = small_resnet(name, group_size)
    images = nhwc(4, 3, 96, 96, seed=5)

    def run(network: nn.Module, images: Tensor) -> Tensor:
        maps = network(images.detach())
        assert [maps[stage].shape[-1] for stage in ("C3", "C4", "C5")] == [12, 6, 3]
        return torch.cat([features[:, :, ::2, ::2].mean((2, 3), keepdim=True) for features in maps.values()], dim=1)

    truth, ours = (everything(network, run, images, dtype) for dtype in (torch.float64, None))
    monkeypatch.setattr(fused, "kernels", lambda: None)
    theirs = everything(network, run, images, None)
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours), "both used the same kernels"
    check_errors(errors(ours, truth), errors(theirs, truth))


@pytest.mark.slow
@needs_kernels
def test_running_statistics_without_gradient(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the pass of the key encoder."""
    network = small_resnet("resnet50")
    images = nhwc(4, 3, 64, 64, seed=6)

    def after(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=images.dtype is torch.bfloat16):
            maps = network(images)
        commit_statistics(network)
        assert not any(features.requires_grad for features in maps.values())
        return {name: value.double() for name, value in [*maps.items(), *network.named_buffers()] if value.any()}

    truth = after(copy.deepcopy(network).double(), images.double())
    ours = errors(after(copy.deepcopy(network), images), truth)
    monkeypatch.setattr(fused, "kernels", lambda: None)
    check_errors(ours, errors(after(network, images), truth))


@needs_kernels
def test_networks_that_cannot_be_fused() -> None:
    network, images = small_resnet(), nhwc(4, 3, 32, 32, seed=7)

    def can(network: nn.Module = network, images: Tensor = images) -> bool:
        with torch.autocast("cpu", torch.bfloat16):
            return fused.can_fuse(network, images)

    assert can()
    assert not fused.can_fuse(network, images)  # no autocast
    with torch.autocast("cpu", torch.float16):
        assert not fused.can_fuse(network, images)
    assert can(images=nhwc(8, 3, 32, 32, seed=7))  # two groups
    assert not can(images=nhwc(6, 3, 32, 32, seed=7))
    assert not can(images=images.clone().requires_grad_())
    assert not can(copy.deepcopy(network).eval())
    assert not can(ResNet("resnet18").train())  # PyTorch's own BatchNorm
    partly = copy.deepcopy(network)
    partly.get_submodule("layer1.0").bn1 = FrozenBatchNorm2d(64)
    assert not can(partly)
    partly = copy.deepcopy(network)
    partly.get_submodule("layer2.0.bn2").eval()
    assert not can(partly)
    partly.train()
    assert can(partly)
    hooks: list[Callable[[], Any]] = [
        lambda: partly.get_submodule("layer2.0").register_forward_hook(lambda *_: None),
        lambda: partly.get_submodule("layer2.0.conv1").register_forward_pre_hook(lambda *_: None),
        lambda: partly.get_submodule("layer3").register_full_backward_hook(lambda *_: None),
        lambda: nn.modules.module.register_module_forward_hook(lambda *_: None),
    ]
    for hook_on in hooks:
        hook = hook_on()
        assert not can(partly)
        hook.remove()
        assert can(partly)
    others: dict[str, nn.Module] = {
        "layer1.0.relu": nn.SiLU(),
        "layer1.0.conv1": nn.Conv2d(64, 64, 3, padding=1),
        "layer1.0.conv2": nn.Conv2d(64, 64, 3, padding=1, bias=False, padding_mode="reflect"),
        "maxpool": nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        "layer1.2": nn.Dropout(),
    }
    for name, module in others.items():
        partly = copy.deepcopy(network)
        *parent, last = name.split(".")
        setattr(partly.get_submodule(".".join(parent)), last, module)
        assert not can(partly), name


@needs_kernels
def test_one_value_per_channel_has_no_variance() -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="one value per channel"):
        small_resnet()(nhwc(1, 3, 32, 32, seed=7))


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_reach_the_output_and_the_statistics(value: float, kind: str) -> None:
    network = small_resnet("resnet50")
    images = nhwc(4, 3, 64, 64, seed=8)
    images[1, 0, 5, 5] = value
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        maps = network(images)
    assert not maps["C5"].isfinite().all()
    assert commit_statistics(network).isnan()


@needs_kernels
def test_sums_do_not_depend_on_the_number_of_threads() -> None:
    x = nhwc(3, 72, 37, 29, seed=4)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(norms.partial_sums(x)[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@needs_kernels
def test_a_batch_without_images() -> None:
    network = small_resnet().requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(torch.empty(0, 3, 64, 64))["C5"].shape == (0, 512, 2, 2)


@pytest.mark.slow
@needs_products
def test_registers_are_used_if_tiles_are_not_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    build: Any = compile_kernels
    libraries: list[Any] = []

    def allow_second(library: Any) -> bool:
        libraries.append(library)
        return len(libraries) > 1

    monkeypatch.setattr(build_module, "_are_products_allowed", allow_second)
    assert build.__wrapped__() is libraries[1]
    monkeypatch.setattr(build_module, "_are_products_allowed", lambda library: False)
    library = build.__wrapped__()
    assert library is not None
    assert not hasattr(library, "resim_pointwise_pack")


@needs_kernels
def test_a_large_mean_does_not_reduce_precision() -> None:
    """In float32, the sum of squares of values around 1,000 is too inexact for a variance of 1."""
    norm = GroupedBatchNorm2d(32, 8)
    x = (torch.randn(8, 32, 40, 40, generator=torch.Generator().manual_seed(0)) * 16 + 1000).bfloat16()
    x = x.to(memory_format=torch.channels_last)
    norms.coefficients(*norms.partial_sums(x), norms.shape(x)[0], norm)
    variance, mean = torch.var_mean(x.double(), dim=(0, 2, 3))
    assert torch.allclose(norm.pending[0].double(), mean, rtol=1e-6)
    assert torch.allclose(norm.pending[1].double(), variance, rtol=1e-5)


@pytest.mark.slow
@needs_kernels
def test_the_kernels_are_compiled_once_and_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build: Any = compile_kernels
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build.__wrapped__() is not None
    (library_file,) = (tmp_path / "resim").iterdir()
    modified = library_file.stat().st_mtime_ns
    assert build.__wrapped__() is not None
    assert [path.stat().st_mtime_ns for path in (tmp_path / "resim").iterdir()] == [modified]
    for damaged in (b"", b"no library"):
        library_file.unlink()  # not overwritten: the library is loaded
        library_file.write_bytes(damaged)
        assert build.__wrapped__() is not None
    with monkeypatch.context() as patch:
        patch.setenv("CC", "cc -g0")
        assert build.__wrapped__() is not None
    count = len(list((tmp_path / "resim").iterdir()))
    with monkeypatch.context() as patch:
        patch.setenv("RESIM_KERNELS", "off")
        assert kernels() is None
    for compiler in ("there-is-no-such-compiler", "false", '"'):
        with monkeypatch.context() as patch:
            patch.setenv("CC", compiler)
            assert build.__wrapped__() is None
    if product_kernels() is not None:  # a compiler that does not know their instructions
        old = tmp_path / "old-cc"
        old.write_text('#!/bin/sh\ncase "$*" in *pointwise.c*) exit 1;; esac\nexec cc "$@"\n')
        old.chmod(0o755)
        with monkeypatch.context() as patch:
            patch.setenv("CC", str(old))
            library = build.__wrapped__()
            assert library is not None
            assert not hasattr(library, "resim_pointwise_pack")
        count += 1
    assert len(list((tmp_path / "resim").iterdir())) == count  # no unfinished files remain
    file = tmp_path / "a file"
    file.write_text("")
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(file))
        assert build.__wrapped__() is None


def test_the_package_contains_the_sources() -> None:
    folder = Path(fused.__file__).parent
    names = {path.name for path in folder.iterdir() if path.suffix in (".c", ".h")}
    assert names == {"norm.c", "pointwise.c", "weight_grad.c", "lanes.h"}
