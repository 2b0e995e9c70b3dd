"""A key encoder follows its query encoder, and their weights in bfloat16 come with it."""

from __future__ import annotations

import pytest
import torch
from needs import needs_kernels
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from resim.model.fused import low as module
from resim.model.fused.low import follow, forget, low


def parameters(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(70, 33, 3, 3), (64, 64, 1, 1), (5,), (300, 300), (128, 64, 3, 3), ()]
    values = [torch.randn(shape, generator=generator) for shape in shapes]
    values[4] = values[4].to(memory_format=torch.channels_last)
    return [nn.Parameter(value) for value in values]


def followed(
    *, autocast: bool, averages: list[Tensor] | None = None, momentum: float = 0.99, copies: bool = True
) -> tuple[list[Tensor], list[Tensor]]:
    averages, values = averages or parameters(1), parameters(2)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        follow(averages, values, momentum, copies=copies)
    return averages, values


def is_average(averages: list[Tensor], momentum: float = 0.99) -> bool:
    """Whether they are the moving averages but for float32's roundings.

    Four at most lie on the way: of the share, of the difference, of their product and of the sum, the first three of
    a size of the difference. Where a processor fuses product and sum, one falls away.
    """
    unit = torch.finfo(torch.float32).eps / 2
    for average, before, value in zip(averages, parameters(1), parameters(2), strict=True):
        exact = momentum * before.detach().double() + (1 - momentum) * value.detach().double()
        bound = unit * (3 * (value - before).detach().double().abs() + exact.abs()) * (1 + 4 * unit)
        if not bool(((average.detach().double() - exact).abs() <= bound).all()):
            return False
    return True


@pytest.mark.parametrize("momentum", [0, 0.3, 0.5, 0.7, 0.999, 1])
@pytest.mark.parametrize("autocast", [False, True])
def test_it_is_the_moving_average(autocast: bool, momentum: float) -> None:
    averages, values = followed(autocast=autocast, momentum=momentum)
    assert is_average(averages, momentum)
    assert momentum or all(torch.equal(average, value) for average, value in zip(averages, values, strict=True))
    assert momentum < 1 or all(torch.equal(one, other) for one, other in zip(averages, parameters(1), strict=True))


def test_without_autocast_it_is_pytorchs_own_to_the_last_bit() -> None:
    averages, _ = followed(autocast=False, momentum=0.7)
    theirs = [average.detach() for average in parameters(1)]
    get_ema_multi_avg_fn(0.7)(theirs, [value.detach() for value in parameters(2)], 0)
    assert all(torch.equal(average, other) for average, other in zip(averages, theirs, strict=True))


def test_other_layouts_and_dtypes_follow_too() -> None:
    averages = parameters(1)
    averages[4] = nn.Parameter(averages[4].detach().contiguous())
    averages[3] = nn.Parameter(averages[3].detach().t().contiguous().t())
    assert is_average(followed(autocast=True, averages=averages)[0])
    strided = [torch.arange(20.0)[::2], torch.arange(20.0, 40.0)[::2]]
    with torch.autocast("cpu", torch.bfloat16):
        follow([strided[0]], [strided[1]], 0.75)
        assert torch.equal(strided[0], torch.arange(20.0)[::2] + 5)
        follow(doubles := [torch.zeros(3, dtype=torch.float64)], [torch.ones(3, dtype=torch.float64)], 0.75)
    assert doubles[0].tolist() == [0.25] * 3


@needs_kernels
def test_what_was_made_is_given_until_the_weight_changes_or_it_is_let_go() -> None:
    averages, values = followed(autocast=True)
    assert all(torch.equal(low(weight), weight.to(torch.bfloat16)) for weight in (*averages, *values))
    assert all(low(weight).stride() == weight.stride() for weight in (*averages, *values))
    assert all((low(weight) is low(weight)) == (weight.dim() == 4) for weight in (*averages, *values))
    with torch.no_grad():
        averages[0].add_(1)
    assert torch.equal(low(averages[0]), averages[0].to(torch.bfloat16))
    assert low(averages[0]) is not low(averages[0])
    forget(averages)
    assert low(averages[1]) is not low(averages[1])
    assert low(values[1]) is low(values[1])
    followed(autocast=True, averages=averages)
    assert torch.equal(low(averages[1]), averages[1].to(torch.bfloat16)), "what was made before"
    count = len(module._kept)
    del averages, values
    assert len(module._kept) < count, "it keeps weights alive"
    forget(list(module._kept))


def test_a_graph_sees_that_the_weights_moved() -> None:
    averages = parameters(1)
    y = (averages[0] * averages[0]).sum()
    followed(autocast=True, averages=averages)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@pytest.mark.parametrize(("autocast", "copies"), [(False, True), (True, False)])
def test_where_nothing_is_made(autocast: bool, copies: bool) -> None:
    averages, values = followed(autocast=autocast, copies=copies)
    assert not any(weight in module._kept for weight in (*averages, *values))
    assert is_average(averages)
