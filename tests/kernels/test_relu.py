"""ReLU of bfloat16 as an integer operation equals nn.ReLU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from resim.distributed.processes import Processes
from resim.kernels.cpu.relu import ReLU, quicken_relus
from resim.model.encoder import Encoder, ModelConfig
from resim.model.resim import ReSim
from resim.runs.config import OptimConfig
from resim.training.step import make_stepper
from resim.views.views import Views


def all_bfloat16() -> Tensor:
    """All values of bfloat16 except NaNs, with infinities and both zeros."""
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    return values[~values.isnan()]


@pytest.mark.parametrize("inplace", [False, True])
def test_every_value_and_its_gradient(inplace: bool) -> None:
    values = all_bfloat16()
    assert len(values) == 2**16 - 2 * 127
    upstream = torch.linspace(-3, 3, len(values)).bfloat16()
    ours, theirs = (values.clone().requires_grad_() for _ in range(2))
    out, expected = ReLU(inplace=inplace)(ours * 1), nn.ReLU(inplace=inplace)(theirs * 1)
    assert torch.equal(out, expected)
    out.backward(upstream)
    expected.backward(upstream)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("inplace", [False, True])
def test_only_in_place_changes_its_input(inplace: bool) -> None:
    x = torch.tensor([-1.0, 2.0], dtype=torch.bfloat16)
    out = ReLU(inplace=inplace)(x)
    assert out.tolist() == [0, 2]
    assert x.tolist() == ([0, 2] if inplace else [-1, 2])
    assert (out.data_ptr() == x.data_ptr()) == inplace


@pytest.mark.parametrize("grad_layout", [torch.contiguous_format, torch.channels_last])
def test_any_memory_layout(grad_layout: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 5, generator=generator).bfloat16().contiguous(memory_format=torch.channels_last)
    upstream = torch.randn(2, 3, 4, 5, generator=generator).bfloat16().contiguous(memory_format=grad_layout)
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    ReLU()(ours).backward(upstream)
    torch.relu(theirs).backward(upstream)
    assert torch.equal(ours.grad, theirs.grad)  # type: ignore[arg-type]
    (ours.grad,) = torch.autograd.grad(ReLU()(ours).sum(), ours)  # a gradient without strides
    assert torch.equal(ours.grad, (x > 0).bfloat16())


def test_float32_uses_pytorch() -> None:
    x = torch.randn(10, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = ReLU()(x)
    assert torch.equal(out, torch.relu(x))
    assert out.grad_fn is not None
    assert out.grad_fn.name() == "ReluBackward0"


def test_every_relu_of_an_encoder_is_replaced() -> None:
    encoder = Encoder(ModelConfig(backbone="resnet18", fpn_width=8, dim=8))
    relus = [module for module in encoder.modules() if isinstance(module, nn.ReLU)]
    assert len(relus) == 1 + 8 + 1  # of the stem, the blocks and the head
    assert all(type(module) is ReLU for module in relus)
    quicken_relus(encoder)
    assert [module for module in encoder.modules() if isinstance(module, nn.ReLU)] == relus


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
