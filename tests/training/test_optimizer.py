"""AdamW, LARS, decay groups and clipping do what their papers say, and a saved state continues bit for bit."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from resim.distributed.processes import Processes
from resim.model.config import ModelConfig
from resim.regions.level import Level
from resim.runs.config import OptimConfig
from resim.training.optimizer import build_optimizer, clip_gradients
from resim.training.step import Stepper, make_stepper
from resim.views.views import Views

ALONE = Processes(rank=0, count=1, device=torch.device("cpu"), cores=1)
MODEL = ModelConfig(
    backbone="resnet18",
    levels=(Level(name="P4", window=32, step=16, negatives="all"),),
    fpn_width=8,
    dim=8,
    queue_size=12,
    group_size=2,
    key_momentum=0.9,
)
ADAMW = OptimConfig(
    optimizer="adamw", lr=1e-3, weight_decay=0.05, decay_norms=False, betas=(0.9, 0.95), clip_norm=10.0, seed=3
)
LARS = dataclasses.replace(ADAMW, optimizer="lars", lr=0.3, clip_norm=0.0)


def views(step: int) -> tuple[Views, Views]:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(2, 4, 3, 64, 64, generator=generator)
    crops = torch.tensor([[0.0, 0.0, 64.0, 64.0]], dtype=torch.float64).expand(4, 4)
    return Views(images[0], crops), Views(images[1], crops)


def take_steps(stepper: Stepper, first: int, last: int) -> None:
    for step in range(first, last):
        stepper(*views(step), torch.tensor([2, 0, 3, 1]))


class Small(nn.Module):
    """A matrix of 1 x 2, which decays, and a bias, which need not."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))

    def set_gradients(self, weight: list[float], bias: float) -> None:
        self.weight.grad = torch.tensor([weight], dtype=torch.float64)
        self.bias.grad = torch.tensor([bias], dtype=torch.float64)


@pytest.mark.parametrize("plain", [True, False])
def test_first_step_of_adamw(plain: bool) -> None:
    small = Small()
    config = OptimConfig(optimizer="adamw", lr=0.1, weight_decay=0.5, decay_norms=False)
    optimizer = build_optimizer(small, config, plain=plain)
    small.set_gradients([7.0, -0.2], 5.0)
    optimizer.step()
    # a first step is lr in the gradient's direction; decoupled decay takes lr * 0.5 of the weight and none of the bias
    assert small.weight.tolist() == [pytest.approx([3 * 0.95 - 0.1, 4 * 0.95 + 0.1], abs=1e-7)]
    assert small.bias.tolist() == pytest.approx([1.9], abs=1e-7)


def test_first_step_of_lars() -> None:
    small = Small()
    optimizer = build_optimizer(small, OptimConfig(optimizer="lars", lr=2.0, weight_decay=0.1, decay_norms=False))
    small.set_gradients([0.6, 0.8], 5.0)
    optimizer.step()
    trust = 0.001 * 5 / (1 + 0.1 * 5)  # |weight| = 5, |gradient| = 1
    expected = [3 - 2 * trust * (0.6 + 0.1 * 3), 4 - 2 * trust * (0.8 + 0.1 * 4)]
    assert small.weight.tolist() == [pytest.approx(expected, rel=1e-6)]
    assert small.bias.tolist() == pytest.approx([2 - 2 * 5], rel=1e-6)  # without decay and without trust ratio


def test_clipping_scales_all_gradients_together() -> None:
    small = Small()
    small.set_gradients([2.0, 6.0], 3.0)
    assert float(clip_gradients(small.parameters(), 3.5)) == pytest.approx(7.0)
    assert small.weight.grad is not None
    assert small.bias.grad is not None
    assert torch.cat([small.weight.grad.flatten(), small.bias.grad]).tolist() == pytest.approx([1.0, 3.0, 1.5], 1e-5)


def test_decay_leaves_out_biases_and_norms_only_where_asked() -> None:
    query = make_stepper(MODEL, ADAMW, ALONE, precision="float32").model.query
    together = build_optimizer(query, OptimConfig()).param_groups
    decayed, spared = build_optimizer(query, ADAMW).param_groups
    assert len(together) == 1
    assert [id(p) for p in together[0]["params"]] == [id(p) for p in query.parameters()]
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.05, 0.0)
    names = {id(parameter): name for name, parameter in query.named_parameters()}
    assert "backbone.bn1.weight" in [names[id(parameter)] for parameter in spared["params"]]
    assert all(names[id(p)].endswith("bias") or p.ndim == 1 for p in spared["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


@pytest.mark.slow
@pytest.mark.parametrize("config", [ADAMW, LARS], ids=["adamw", "lars"])
def test_a_saved_state_continues_bit_for_bit(config: OptimConfig) -> None:
    whole, first, second = (make_stepper(MODEL, config, ALONE, precision="float32") for _ in range(3))
    take_steps(whole, 0, 3)
    take_steps(first, 0, 1)
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    take_steps(second, 1, 3)
    theirs: dict[str, Tensor] = second.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in whole.model.state_dict().items())


@pytest.mark.slow
def test_the_gradient_norm_of_a_clipped_step_is_reported() -> None:
    stepper = make_stepper(MODEL, dataclasses.replace(ADAMW, clip_norm=1e-3), ALONE, precision="float32")
    norm = float(stepper(*views(0), None)["gradient/norm"])
    left = torch.cat([p.grad.double().flatten() for p in stepper.model.query.parameters() if p.grad is not None]).norm()
    assert norm > 1e-3
    assert float(left) == pytest.approx(1e-3, rel=1e-3)
    assert math.isfinite(norm)


@pytest.mark.slow
def test_the_weight_of_the_instance_loss_scales_its_share_of_the_total() -> None:
    model = dataclasses.replace(MODEL, instance_weight=0.25)
    losses = make_stepper(model, OptimConfig(seed=3), ALONE, precision="float32")(*views(0), None)
    assert float(losses["total"]) == pytest.approx(0.25 * float(losses["instance"]) + float(losses["P4"]), rel=1e-6)
