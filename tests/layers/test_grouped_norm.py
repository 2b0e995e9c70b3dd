"""A grouped BatchNorm is a BatchNorm for each group, and its running statistics are the groups' mean."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from needs import need
from resim.layers.grouped_norm import (
    GroupedBatchNorm2d,
    GroupedBatchNormAct2d,
    commit_statistics,
    count_groups,
    group_norms,
    normalize_groups,
)
from resim.model.encoder import Encoder, ModelConfig

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 + 1


def pair(
    channels: int, group_size: int, dtype: torch.dtype = torch.float64
) -> tuple[GroupedBatchNorm2d, nn.BatchNorm2d]:
    """A grouped and a plain norm with the same, unremarkable parameters and buffers."""
    separate = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.3).double()
    with torch.no_grad():
        for index, tensor in enumerate((separate.weight, separate.bias, separate.running_mean)):
            assert tensor is not None
            tensor.copy_(noise(channels, seed=10 + index))
        assert separate.running_var is not None
        separate.running_var.copy_(noise(channels, seed=13).square() + 0.5)
    grouped = GroupedBatchNorm2d(channels, group_size, eps=1e-3, momentum=0.3)
    grouped.to(dtype).load_state_dict(separate.state_dict())
    return grouped, separate.to(dtype)


def close(a: Tensor | None, b: Tensor | None, tol: float) -> bool:
    assert a is not None
    assert b is not None
    return bool((a - b).abs().max() <= tol * b.abs().max())


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grad_layout", LAYOUTS)
@pytest.mark.parametrize("groups", [1, 3])
def test_grouped_is_separate(
    groups: int,
    grad_layout: torch.memory_format,
    layout: torch.memory_format,
    dtype: torch.dtype,
    tol: float,
) -> None:
    grouped, separate = pair(5, group_size=4, dtype=dtype)
    images = noise(4 * groups, 5, 6, 7).to(dtype).contiguous(memory_format=layout)
    upstream = noise(4 * groups, 5, 6, 7, seed=1).to(dtype).contiguous(memory_format=grad_layout)
    ours, theirs = images.clone().requires_grad_(), images.clone().requires_grad_()
    before = [copy.deepcopy(b) for b in (separate.running_mean, separate.running_var)]

    out = grouped(ours)
    expected = torch.cat([separate(chunk) for chunk in theirs.chunk(groups)])
    assert out.is_contiguous(memory_format=layout)
    assert close(out, expected, tol)

    out.backward(upstream)
    expected.backward(upstream)
    assert close(ours.grad, theirs.grad, tol)
    assert close(grouped.weight.grad, separate.weight.grad, tol)
    assert close(grouped.bias.grad, separate.bias.grad, tol)

    assert torch.equal(grouped.running_mean, before[0])  # type: ignore[arg-type]
    commit_statistics(grouped)
    chunks = images.chunk(groups)
    mean = torch.stack([chunk.mean(dim=(0, 2, 3)) for chunk in chunks]).mean(dim=0)
    variance = torch.stack([chunk.transpose(0, 1).flatten(1).var(dim=1) for chunk in chunks]).mean(dim=0)
    assert close(grouped.running_mean, 0.7 * before[0] + 0.3 * mean, tol)  # type: ignore[operator]
    assert close(grouped.running_var, 0.7 * before[1] + 0.3 * variance, tol)  # type: ignore[operator]
    assert grouped.num_batches_tracked == 1


def test_running_statistics_by_hand() -> None:
    norm = GroupedBatchNorm2d(1, group_size=2)
    # two groups of two pixels: means 1 and 6, unbiased variances 2 and 8; from 0 and 1 at momentum 0.1
    norm(torch.tensor([0.0, 2.0, 4.0, 8.0]).reshape(4, 1, 1, 1))
    commit_statistics(norm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.running_mean.item() == pytest.approx(0.35)
    assert norm.running_var.item() == pytest.approx(0.9 + 0.5)


def test_one_group_is_batch_norm_with_its_running_statistics() -> None:
    grouped, separate = pair(3, group_size=8)
    images = noise(8, 3, 4, 4)
    assert torch.equal(grouped(images), separate(images))
    commit_statistics(grouped)
    for name, value in separate.state_dict().items():
        assert torch.allclose(grouped.state_dict()[name], value, rtol=1e-14, atol=0)


def test_a_batch_smaller_than_a_group_is_one_group() -> None:
    grouped, separate = pair(3, group_size=32)
    images = noise(5, 3, 4, 4)
    assert torch.equal(grouped(images), separate(images))


@pytest.mark.parametrize("passes", [[4, 4, 4], [8, 4], [4, 8]])
def test_chunks_in_several_passes_are_one_pass(passes: list[int]) -> None:
    images, upstream = noise(12, 3, 4, 4), noise(12, 3, 4, 4, seed=1)
    once, _ = pair(3, group_size=4)
    several, _ = pair(3, group_size=4)
    out = once(images)
    out.backward(upstream)
    commit_statistics(once)
    outs = []
    for chunk, grad in zip(images.split(passes), upstream.split(passes), strict=True):
        outs.append(several(chunk))
        outs[-1].backward(grad)
    commit_statistics(several)
    assert torch.allclose(torch.cat(outs), out, rtol=0, atol=1e-13)
    assert close(several.weight.grad, once.weight.grad, 1e-13)
    assert close(several.bias.grad, once.bias.grad, 1e-13)
    for name, value in once.state_dict().items():
        assert torch.allclose(several.state_dict()[name], value, rtol=1e-14, atol=0)


def test_statistics_are_committed_once() -> None:
    norm, _ = pair(3, group_size=4)
    norm(noise(8, 3, 4, 4))
    commit_statistics(norm)
    state = copy.deepcopy(norm.state_dict())
    commit_statistics(norm)
    assert all(torch.equal(state[name], value) for name, value in norm.state_dict().items())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("groups", [1, 2])
def test_bfloat16_images_with_float32_parameters(groups: int, layout: torch.memory_format) -> None:
    grouped, separate = pair(6, group_size=4, dtype=torch.float32)
    images = noise(4 * groups, 6, 8, 8).bfloat16().contiguous(memory_format=layout).requires_grad_()
    exact = images.detach().float().requires_grad_()
    out = grouped(images)
    expected = torch.cat([separate(chunk) for chunk in exact.chunk(groups)])
    assert out.dtype == torch.bfloat16
    assert close(out.float(), expected, 2**-8)
    upstream = noise(*images.shape, seed=1).bfloat16()
    out.backward(upstream)
    expected.backward(upstream.float())
    assert images.grad is not None
    assert images.grad.dtype == torch.bfloat16
    assert images.grad.stride() == images.stride()
    assert close(images.grad.float(), exact.grad, 2**-7)
    assert grouped.weight.grad is not None
    assert grouped.weight.grad.dtype == torch.float32
    assert close(grouped.weight.grad, separate.weight.grad, 2**-7)
    commit_statistics(grouped)
    assert grouped.running_mean is not None
    assert grouped.running_mean.dtype == torch.float32
    assert grouped.running_mean.isfinite().all()


@pytest.mark.parametrize("images", [1, 8, 11])
def test_evaluation_is_batch_norm_for_any_number_of_images(images: int) -> None:
    grouped, separate = pair(3, group_size=4)
    grouped.eval()
    separate.eval()
    batch = noise(images, 3, 4, 4)
    assert torch.equal(grouped(batch), separate(batch))
    assert not grouped.pending.any()


def test_the_gradient_is_the_derivative() -> None:
    norm, _ = pair(2, group_size=2)
    inputs = noise(4, 2, 2, 2).requires_grad_(), norm.weight, norm.bias
    assert torch.autograd.gradcheck(lambda images, *_: norm(images), inputs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_output_for_a_compiler_is_no_view(layout: torch.memory_format) -> None:
    images = noise(8, 3, 4, 4).bfloat16().contiguous(memory_format=layout).requires_grad_()
    out, _ = normalize_groups(images, torch.ones(3), torch.zeros(3), 2, 1e-5)
    assert not out._is_view()
    assert out.stride() == images.stride()


def test_a_group_takes_one_operation_in_each_pass() -> None:
    """A GPU waits for a host that has many small things to say."""

    class Count(TorchDispatchMode):
        operations = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.operations += 1
            return func(*args, **(kwargs or {}))

    def operations(groups: int) -> int:
        norm, _ = pair(2, group_size=2)
        with Count() as counted:
            norm(noise(2 * groups, 2, 2, 2).requires_grad_()).sum().backward()
        return counted.operations

    assert operations(6) - operations(2) == 2 * 4


def test_a_batch_is_a_whole_number_of_groups() -> None:
    assert [count_groups(images, 32) for images in (1, 31, 32, 64, 256)] == [1, 1, 1, 2, 8]
    for images in (33, 100):
        with pytest.raises(ValueError, match=f"{images} images are no whole number of groups of 32"):
            count_groups(images, 32)
    with pytest.raises(ValueError, match="6 images are no whole number of groups of 4"):
        GroupedBatchNorm2d(3, group_size=4)(noise(6, 3, 2, 2).float())


def test_grouping_keeps_names_state_and_settings() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1e-3, momentum=0.2), nn.Sequential(nn.BatchNorm2d(4))
    )
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape) + 2)
    state = copy.deepcopy(network.state_dict())
    group_norms(network, 8)
    norms = [module for module in network.modules() if isinstance(module, GroupedBatchNorm2d)]
    assert [(norm.group_size, norm.eps, norm.momentum) for norm in norms] == [(8, 1e-3, 0.2), (8, 1e-5, 0.1)]
    assert list(network.state_dict()) == list(state)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in state.items())
    group_norms(network, 16)
    assert [module for module in network.modules() if isinstance(module, GroupedBatchNorm2d)] == norms
    assert [norm.group_size for norm in norms] == [16, 16]


def test_no_plain_norm_is_left_in_an_encoder() -> None:
    encoder = Encoder(ModelConfig(backbone="resnet18", fpn_width=8, dim=8, fpn_norm=True, group_size=7))
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 20 + 5  # 20 in a ResNet-18; three laterals and two outputs
    assert all(isinstance(norm, GroupedBatchNorm2d) and norm.group_size == 7 for norm in norms)


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050"])
def test_a_timm_network_with_grouped_norms_equals_the_network_on_each_group(name: str) -> None:
    timm = need("timm", "a timm network in groups is the network a group", "timm")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        separate = timm.create_model(name, pretrained=False, features_only=True).double()
    grouped = copy.deepcopy(separate)
    group_norms(grouped, 3)
    grouped.double()
    acting = [module for module in grouped.modules() if isinstance(module, GroupedBatchNormAct2d)]
    assert bool(acting) == (name == "mobilenetv3_small_050")  # its norms contain an activation
    images = noise(6, 3, 64, 64)
    expected = [separate(chunk) for chunk in images.chunk(2)]
    maps = grouped(images)
    for features, *separately in zip(maps, *expected, strict=True):
        assert torch.allclose(features, torch.cat(separately), rtol=0, atol=1e-9)
    torch.stack([features.square().mean() for features in maps]).sum().backward()
    torch.stack([features.square().mean() / 2 for group in expected for features in group]).sum().backward()
    gradients = {name: p.grad for name, p in separate.named_parameters() if p.grad is not None}
    assert len(gradients) > 20
    for parameter, value in grouped.named_parameters():
        if parameter in gradients:
            assert torch.allclose(value.grad, gradients[parameter], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("groups", [1, 3])
def test_the_form_for_a_compiler_computes_the_same(groups: int) -> None:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(6, 4, 5, 3, generator=generator, dtype=torch.float64)
    norm = GroupedBatchNorm2d(4, 6 // groups).double().train()
    with torch.no_grad():
        norm.weight.copy_(torch.randn(4, generator=generator))
        norm.bias.copy_(torch.randn(4, generator=generator))
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    out = norm(a)
    plain, statistics = normalize_groups(b, norm.weight, norm.bias, groups, norm.eps)
    weights = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    (out * weights).sum().backward()
    (plain * weights).sum().backward()
    torch.testing.assert_close(plain, out, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(b.grad, a.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(statistics.sum(1), norm.pending[:2], rtol=1e-12, atol=1e-12)
    assert norm.pending[2].tolist() == [groups] * 4


@pytest.mark.slow
def test_a_compiler_compiles_one_graph_for_all_passes() -> None:
    encoder = Encoder(ModelConfig(backbone="resnet18", fpn_width=8, dim=8, group_size=2)).train()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(encoder, backend=counter)
    images = noise(4, 3, 96, 96).float()
    for step in range(2):
        for _ in range(3):  # as many passes as there are groups at a time
            vectors, _ = compiled(images)
            vectors.sum().backward()
        commit_statistics(encoder)
        assert counter.frame_count == 1, step
    norm = encoder.backbone.get_submodule("bn1")
    assert norm.num_batches_tracked == 2
