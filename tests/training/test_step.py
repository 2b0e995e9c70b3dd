"""A step in bounded memory is the plain step: all the losses, their gradient, SGD with weight decay on everything."""

from __future__ import annotations

import copy
import weakref
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from resim.distributed.processes import Processes, start_processes
from resim.model.encoder import ModelConfig
from resim.model.resim import ReSim
from resim.regions.level import Level
from resim.runs.config import OptimConfig
from resim.training.step import Stepper, make_stepper
from resim.views.views import Views

pytestmark = pytest.mark.usefixtures("thin_resnets")
ALONE = Processes(rank=0, count=1, device=torch.device("cpu"), cores=1)
BATCH, GROUP, SIZE = 8, 2, 64
ORDER = torch.tensor([5, 0, 3, 6, 1, 7, 2, 4])  # moves keys between groups
OPTIM = OptimConfig(lr=0.05, momentum=0.9, weight_decay=0.01, seed=3)
LEVELS = (
    Level(name="P4", window=32, step=16, negatives="all"),
    Level(name="P3", window=16, step=16, negatives="group"),
)
MODEL = ModelConfig(
    backbone="resnet18", levels=LEVELS, fpn_width=8, dim=8, queue_size=12, group_size=GROUP, key_momentum=0.9
)


def views(step: int, dtype: torch.dtype) -> tuple[Views, Views]:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(2, BATCH, 3, SIZE, SIZE, generator=generator, dtype=torch.float64).to(dtype)
    crops = torch.rand(2, BATCH, 4, generator=generator, dtype=torch.float64) * 20
    crops[..., 2:] += 60
    crops[1, :GROUP, :2] += 500  # the first group has no valid window
    return Views(images[0], crops[0]), Views(images[1], crops[1])


def stepper(dtype: torch.dtype, *, precision: Literal["float32", "bf16"] = "float32", groups: int = 0) -> Stepper:
    made = make_stepper(MODEL, OPTIM, ALONE, precision=precision, groups_at_a_time=groups)
    made.model.to(dtype)
    return made


def run(made: Stepper, steps: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Losses, gradients, weights, statistics and queue after some steps."""
    result: dict[str, Tensor] = {}
    for step in range(steps):
        losses = made(*views(step, dtype), ORDER.roll(step))
        result |= {f"{step}/loss/{name}": value for name, value in losses.items()}
        for name, parameter in made.model.query.named_parameters():
            assert parameter.grad is not None
            result[f"{step}/gradient/{name}"] = parameter.grad.clone()
    return result | {f"state/{name}": value.clone() for name, value in made.model.state_dict().items()}


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest relative difference of any entry."""
    assert a.keys() == b.keys()
    far = [
        float((a[name].double() - b[name].double()).norm() / b[name].double().norm().clamp(min=1e-300)) for name in a
    ]
    return max(far)


@pytest.fixture(scope="module")
def plain() -> dict[str, Tensor]:
    """Two steps in float64, written out: one forward, one backward, SGD by hand."""
    model = ReSim(MODEL, seed=OPTIM.seed).double().train()
    result: dict[str, Tensor] = {}
    velocity: dict[str, Any] = {}
    for step in range(2):
        losses = model(*views(step, torch.float64), order=ORDER.roll(step))
        model.zero_grad()
        losses["total"].backward()
        result |= {f"{step}/loss/{name}": value.detach() for name, value in losses.items()}
        for name, parameter in model.query.named_parameters():
            assert parameter.grad is not None
            result[f"{step}/gradient/{name}"] = parameter.grad.clone()
            with torch.no_grad():
                decayed = parameter.grad + OPTIM.weight_decay * parameter
                velocity[name] = OPTIM.momentum * velocity.get(name, 0) + decayed
                parameter -= OPTIM.lr * velocity[name]
    return result | {f"state/{name}": value.clone() for name, value in model.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 3, 100])
def test_a_few_groups_at_a_time_is_the_plain_step(plain: dict[str, Tensor], groups: int) -> None:
    assert distance(run(stepper(torch.float64, groups=groups), 2, torch.float64), plain) < 1e-9


@pytest.mark.slow
def test_in_single_precision_it_is_the_same_to_rounding(plain: dict[str, Tensor]) -> None:
    one, everything = (run(stepper(torch.float32, groups=groups), 1, torch.float32) for groups in (1, 4))
    assert distance(one, everything) < 1e-4
    assert one["0/loss/total"] == pytest.approx(float(plain["0/loss/total"]), rel=1e-5)


@pytest.mark.slow
def test_what_is_compared_is_not_trivial(plain: dict[str, Tensor]) -> None:
    assert all(plain[f"{step}/loss/{name}"] > 0 for step in range(2) for name in ("instance", "P4", "P3"))
    assert all(0 < plain[f"0/loss/valid/{name}"] < 1 for name in ("P4", "P3"))
    assert all(value.any() for name, value in plain.items() if "/gradient/" in name)
    assert plain["state/queue_position"] == 2 * BATCH % MODEL.queue_size


@pytest.mark.slow
def test_the_keys_of_the_levels_are_freed_before_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    made, levels = stepper(torch.float32, groups=100), list[Any]()
    encode_keys, have_keys = made.model.encode_keys, list[bool]()

    def encode(*arguments: Any, **settings: Any) -> Any:
        keys = encode_keys(*arguments, **settings)
        levels.extend(weakref.ref(level) for level in keys.levels.values())
        return keys

    monkeypatch.setattr(made.model, "encode_keys", encode)
    for parameter in made.model.query.parameters():
        parameter.register_post_accumulate_grad_hook(lambda _: have_keys.append(any(level() for level in levels)))
    made(*views(0, torch.float32), ORDER)
    assert len(levels) == 2
    assert have_keys
    assert not any(have_keys)


@pytest.mark.slow
def test_a_frozen_parameter_is_not_updated() -> None:
    made = stepper(torch.float32, groups=100)
    first, *others = made.model.query.parameters()
    first.requires_grad_(False)
    before = [parameter.clone() for parameter in (first, others[0])]
    made(*views(0, torch.float32), ORDER)
    assert torch.equal(first, before[0])
    assert not torch.equal(others[0], before[1])


def test_without_a_setting_a_cpu_takes_one_group_at_a_time() -> None:
    assert stepper(torch.float32).groups_at_a_time == 1


@pytest.mark.slow
def test_the_total_is_the_sum_of_the_losses_and_has_no_gradient() -> None:
    losses = stepper(torch.float64, groups=1)(*views(0, torch.float64), ORDER)
    assert torch.allclose(losses["total"], losses["instance"] + losses["P4"] + losses["P3"], rtol=1e-12)
    assert not any(value.requires_grad for value in losses.values())


def test_only_the_query_encoder_is_optimised_and_all_of_it() -> None:
    made = stepper(torch.float32)
    (group,) = made.optimizer.param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in made.model.query.parameters()}
    assert not any(parameter.requires_grad for parameter in made.model.key.parameters())
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.05, 0.9, 0.01)
    assert not group["nesterov"]


@pytest.mark.slow
def test_the_key_encoder_moves_by_momentum_alone() -> None:
    made = stepper(torch.float64)
    run(made, 1, torch.float64)  # now the two differ
    query, key = (copy.deepcopy(dict(part.named_parameters())) for part in (made.model.query, made.model.key))
    made(*views(1, torch.float64), ORDER)
    for name, parameter in made.model.key.named_parameters():
        assert parameter.grad is None
        assert torch.allclose(parameter, 0.9 * key[name] + 0.1 * query[name], rtol=1e-12, atol=1e-15)
    moved = torch.cat([(key[name] - query[name]).flatten() for name in key])
    assert moved.norm() > 0


@pytest.mark.slow
def test_bfloat16_is_close_and_finite_and_its_weights_are_single() -> None:
    half, single = (
        run(stepper(torch.float32, precision=precision, groups=4), 1, torch.float32)
        for precision in ("bf16", "float32")
    )
    assert all(value.isfinite().all() for value in half.values())
    assert all(half[name].dtype == value.dtype for name, value in single.items())
    for name in ("instance", "P4", "P3", "total"):
        assert half[f"0/loss/{name}"] == pytest.approx(float(single[f"0/loss/{name}"]), rel=0.1)
        assert half[f"0/loss/{name}"] != single[f"0/loss/{name}"]  # it did run in bfloat16
    a, b = (torch.cat([v.flatten() for n, v in result.items() if "/gradient/" in n]) for result in (half, single))
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.9


# -- what processes agree on, on one


def test_one_process_agrees_with_itself() -> None:
    assert ALONE.agree(True, False) == [True, False]
    assert ALONE.gather_objects({"a": 1}) == [{"a": 1}]
    tensors = [torch.tensor([1.5, 2.0]), torch.tensor(3.0)]
    ALONE.average_(tensors)
    assert tensors[0].tolist() == [1.5, 2.0]
    assert tensors[1].item() == 3.0
    assert ALONE.first


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "RANK"):
        monkeypatch.delenv(name, raising=False)
    with start_processes("cpu") as processes:
        assert (processes.rank, processes.count, processes.device) == (0, 1, torch.device("cpu"))
        assert processes.cores >= 1
    assert not torch.distributed.is_initialized()


@pytest.mark.slow
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["query", "key"])
def test_values_that_are_not_finite_reach_the_reported_loss(value: float, side: str) -> None:
    model = ModelConfig(backbone="resnet18", levels=(), dim=8, queue_size=8, group_size=2)
    alone = Processes(rank=0, count=1, device=torch.device("cpu"), cores=1)
    stepper = make_stepper(model, OptimConfig(), alone, precision="bf16")
    views = {name: torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) for name in ("query", "key")}
    crops = torch.tensor([[0.0, 0.0, 9.0, 9.0]] * 2, dtype=torch.float64)
    before = stepper(Views(views["query"], crops), Views(views["key"], crops), None)
    assert before["total"].isfinite()
    views[side][0, 0, 30, 30] = value
    assert stepper(Views(views["query"], crops), Views(views["key"], crops), None)["total"].isnan()


def test_evaluation_commits_no_statistics() -> None:
    model = ReSim(ModelConfig(backbone="resnet18", levels=(), dim=8, queue_size=8, group_size=2)).eval()
    images, crops = torch.zeros(2, 3, 64, 64), torch.zeros(2, 4)
    keys = model.encode_keys(Views(images, crops), Views(images, crops))
    assert model.finish_step(keys) is None
