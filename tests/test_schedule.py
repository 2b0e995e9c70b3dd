"""The learning rate is a function of the epoch alone."""

from __future__ import annotations

import pytest

from resim.training.config import OptimConfig
from resim.training.schedule import learning_rate


@pytest.mark.parametrize(
    ("epoch", "share"),
    [
        (0, 1.0),
        (50, 0.8535533905932737),  # cos(pi / 4) = sqrt(2) / 2
        (100, 0.5),
        (150, 0.14644660940672624),
        (199, 6.168375917046e-05),  # (pi / 400) ** 2 less (pi / 400) ** 4 / 3
    ],
)
def test_the_cosine_over_200_epochs(epoch: int, share: float) -> None:
    assert learning_rate(OptimConfig(lr=0.03, epochs=200), epoch) == pytest.approx(0.03 * share, rel=1e-9)


def test_the_cosine_over_four_epochs() -> None:
    rates = [learning_rate(OptimConfig(lr=2.0, epochs=4), epoch) for epoch in range(4)]
    assert rates == pytest.approx([2.0, 1 + 2**-0.5, 1.0, 1 - 2**-0.5], abs=1e-15)


def test_a_single_epoch_has_the_full_rate() -> None:
    assert learning_rate(OptimConfig(lr=0.1, epochs=1), 0) == 0.1


def test_the_batch_size_does_not_change_the_rate() -> None:
    small, large = (OptimConfig(batch_size=batch) for batch in (32, 1024))
    assert [learning_rate(small, e) for e in range(5)] == [learning_rate(large, e) for e in range(5)]


def test_a_constant_rate() -> None:
    config = OptimConfig(lr=0.07, epochs=3, schedule="constant")
    assert [learning_rate(config, epoch) for epoch in range(3)] == [0.07, 0.07, 0.07]
