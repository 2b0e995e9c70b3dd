"""The learning rate is a function of the step alone."""

from __future__ import annotations

import re

import pytest

from resim.runs.config import OptimConfig
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
    assert learning_rate(OptimConfig(lr=0.03, epochs=200), 7 * epoch + 6, 7) == pytest.approx(0.03 * share, rel=1e-9)


def test_the_cosine_over_four_epochs() -> None:
    rates = [learning_rate(OptimConfig(lr=2.0, epochs=4), epoch, 1) for epoch in range(4)]
    assert rates == pytest.approx([2.0, 1 + 2**-0.5, 1.0, 1 - 2**-0.5], abs=1e-15)


def test_a_single_epoch_has_the_full_rate() -> None:
    assert learning_rate(OptimConfig(lr=0.1, epochs=1), 3, 5) == 0.1


def test_the_batch_size_does_not_change_the_rate() -> None:
    small, large = (OptimConfig(batch_size=batch) for batch in (32, 1024))
    assert [learning_rate(small, e, 1) for e in range(5)] == [learning_rate(large, e, 1) for e in range(5)]


def test_a_constant_rate() -> None:
    config = OptimConfig(lr=0.07, epochs=3, schedule="constant")
    assert [learning_rate(config, epoch, 1) for epoch in range(3)] == [0.07, 0.07, 0.07]


def test_the_cosine_per_step_falls_within_an_epoch() -> None:
    config = OptimConfig(lr=2.0, epochs=2, schedule="cosine-per-step")
    rates = [learning_rate(config, step, 2) for step in range(4)]
    assert rates == pytest.approx([2.0, 1 + 2**-0.5, 1.0, 1 - 2**-0.5], abs=1e-15)  # cos of 0, 45, 90, 135 degrees


def test_warm_up_rises_step_by_step_and_the_cosine_covers_what_is_left() -> None:
    config = OptimConfig(lr=4.0, epochs=3, schedule="cosine-per-step", warmup_epochs=1.0)
    rates = [learning_rate(config, step, 2) for step in range(6)]
    assert rates == pytest.approx([2.0, 4.0, 4.0, 2 + 2**0.5, 2.0, 2 - 2**0.5], abs=1e-14)


def test_warm_up_for_part_of_an_epoch_under_the_published_cosine() -> None:
    config = OptimConfig(lr=1.0, epochs=2, warmup_epochs=0.5)
    rates = [learning_rate(config, step, 4) for step in range(8)]
    # epoch 1 is (1 - 0.5) / (2 - 0.5) = one third of the cosine: (1 + cos 60 degrees) / 2 = 0.75
    assert rates == pytest.approx([0.5, 1.0, 1.0, 1.0, 0.75, 0.75, 0.75, 0.75], abs=1e-15)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup_epochs": 3.0, "epochs": 3}, "warmup-epochs 3: must be below epochs 3"),
        ({"warmup_epochs": -1.0}, "warmup-epochs -1.0: must be at least 0"),
        ({"clip_norm": -1.0}, "clip-norm -1.0: must be at least 0"),
        ({"betas": (0.9, 1.0)}, "betas 0.9 1.0: each must be below 1"),
        ({"optimizer": "adam"}, "optimizer 'adam': must be one of sgd, adamw, lars"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        OptimConfig(**settings)  # type: ignore[arg-type]
