"""Normalisation: over all processes as over one, fixed, and with statistics recomputed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

from forked import on_processes
from resim.detection.norms import AllReduceBatchNorm2d, freeze, norm_layer, recompute_statistics
from resim.distributed.processes import Processes
from tiny_detectors import randomise_norms

CHANNELS = 5
SPLITS = {"equal": (3, 3), "unequal": (5, 1), "none-on-one": (6, 0)}
MOMENTA: dict[str, float | None] = {"moving": 0.1, "cumulative": None}


def whole() -> tuple[Tensor, Tensor]:
    """Images (6, C, 4, 3) far from zero mean, and weights of their outputs."""
    generator = torch.Generator().manual_seed(0)
    images, weights = torch.randn(2, 6, CHANNELS, 4, 3, generator=generator, dtype=torch.float64)
    return 2 * images + torch.arange(CHANNELS).view(-1, 1, 1), weights


def trained(norm: nn.BatchNorm2d, images: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Two forward passes and one backward pass in training, and what evaluation gives then."""
    randomise_norms(norm)
    images = images.clone().requires_grad_()
    norm(images * 0.5)
    out = norm(images)
    (out.square() * weights).sum().backward()
    assert images.grad is not None
    assert norm.weight.grad is not None
    assert norm.bias.grad is not None
    state = {name: value.clone() for name, value in norm.state_dict().items()}
    evaluated = norm.eval()(images).detach()
    return {
        "out": out.detach(), "grad": images.grad, "evaluated": evaluated, "weight_grad": norm.weight.grad,
        "bias_grad": norm.bias.grad,
    } | state  # fmt: skip


def work(rank: int, folder: str) -> None:
    """One process of two."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        images, weights = whole()
        results = {}
        for split, counts in SPLITS.items():
            mine = slice(0, counts[0]) if rank == 0 else slice(counts[0], 6)
            for name, momentum in MOMENTA.items():
                norm = AllReduceBatchNorm2d(CHANNELS, momentum=momentum).double()
                results[f"{split}-{name}"] = trained(norm, images[mine], weights[mine])
        half = AllReduceBatchNorm2d(CHANNELS)(images.bfloat16())
        assert half.dtype == torch.bfloat16
        torch.save(results, Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("norms")
    on_processes(work, (str(folder),), 2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("momentum", list(MOMENTA))
@pytest.mark.parametrize("split", list(SPLITS))
def test_over_two_processes_it_is_batchnorm_of_the_joined_batch(
    two: list[dict[str, dict[str, Tensor]]], split: str, momentum: str
) -> None:
    expected = trained(nn.BatchNorm2d(CHANNELS, momentum=MOMENTA[momentum]).double(), *whole())
    first, second = (result[f"{split}-{momentum}"] for result in two)
    for name in ("out", "grad", "evaluated"):  # each has its own images
        assert torch.allclose(torch.cat([first[name], second[name]]), expected[name], rtol=0, atol=1e-9), name
    for name in ("weight_grad", "bias_grad"):  # sums over images, which DistributedDataParallel puts together
        assert torch.allclose(first[name] + second[name], expected[name], rtol=0, atol=1e-9), name
    for name in ("running_mean", "running_var"):
        for result in (first, second):
            assert torch.allclose(result[name], expected[name], rtol=0, atol=1e-9), name
    assert int(first["num_batches_tracked"]) == int(second["num_batches_tracked"]) == 2


def test_which_norm_belongs_to_how_many_processes() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    one = Processes(rank=0, count=1, device=cpu, cores=1)
    several = [Processes(rank=0, count=2, device=device, cores=1) for device in (cpu, gpu)]
    assert norm_layer("sync", None) is norm_layer("sync", one) is nn.BatchNorm2d
    assert [norm_layer("sync", p) for p in several] == [AllReduceBatchNorm2d, nn.SyncBatchNorm]
    assert all(norm_layer("batch", p) is nn.BatchNorm2d for p in several)
    assert all(norm_layer("frozen", p) is FrozenBatchNorm2d for p in (None, one, *several))


# -- fixed


def test_a_fixed_module_computes_what_it_did_in_evaluation() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1e-3), nn.Sequential(nn.BatchNorm2d(4)))
    randomise_norms(module)
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = module.eval()(images)
    freeze(module)
    module.train()
    result = module(images)
    assert torch.allclose(result, expected, rtol=1e-5, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert not any(isinstance(child, _BatchNorm) for child in module.modules())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module(images + 1)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


# -- precise


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))


def test_precise_statistics_are_the_plain_mean_over_batches() -> None:
    model, batches = net(), [torch.randn(2, 3, 4, 4) * scale for scale in (1, 2, 5)]
    randomise_norms(model)
    model.eval()
    weights = [p.clone() for p in model.parameters()]
    recompute_statistics(model, model, batches)
    assert not model.training
    assert all(torch.equal(p, before) for p, before in zip(model.parameters(), weights, strict=True))
    first: Any = model[1]
    second: Any = model[4]
    assert first.momentum == second.momentum == 0.1
    with torch.no_grad():
        outputs = [model[0](batch) for batch in batches]
        assert torch.allclose(first.running_mean, torch.stack([x.mean((0, 2, 3)) for x in outputs]).mean(0), atol=1e-6)
        variances = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in outputs])
        assert torch.allclose(first.running_var, variances.mean(0), rtol=1e-5)
        # the second sees batches that the first normalised with each batch's own statistics
        fresh = nn.BatchNorm2d(4)
        fresh.load_state_dict(first.state_dict())
        outputs = [model[3](torch.relu(fresh(x))) for x in outputs]
        assert torch.allclose(second.running_mean, torch.stack([x.mean((0, 2, 3)) for x in outputs]).mean(0), atol=1e-6)


def test_precise_statistics_forget_what_was_there_and_leave_fixed_ones() -> None:
    batches = [torch.randn(2, 3, 4, 4)]
    one, other = net(), net()
    randomise_norms(one, seed=1)
    randomise_norms(other, seed=2)
    other.load_state_dict({n: v for n, v in one.state_dict().items() if "running" not in n}, strict=False)
    for model in (one, other):
        recompute_statistics(model, model, batches)
    assert all(torch.equal(one.state_dict()[name], value) for name, value in other.state_dict().items())
    freeze(one)
    before = {name: value.clone() for name, value in one.state_dict().items()}
    recompute_statistics(one, one, batches)
    assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items())
