"""Health of features: known spectra, known spreads, and warnings of collapse."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from resim.probes import health
from resim.probes.health import alignment, collapse_warning, measure_health, queue_age, rankme, uniformity


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
def test_rankme_of_known_spectra(shape: tuple[int, int]) -> None:
    rng = torch.Generator().manual_seed(0)
    u, _ = torch.linalg.qr(torch.randn(shape[0], 12, generator=rng, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(shape[1], 12, generator=rng, dtype=torch.float64))

    def with_spectrum(values: list[float]) -> torch.Tensor:
        return u[:, : len(values)] * torch.tensor(values, dtype=torch.float64) @ v[:, : len(values)].T

    # singular values are square roots of eigenvalues, so a zero may be computed as 1e-8
    assert rankme(with_spectrum([3.0] * 12)) == pytest.approx(12, rel=1e-6)
    assert rankme(with_spectrum([5.0] * 4)) == pytest.approx(4, rel=1e-5)
    assert rankme(with_spectrum([7.0])) == pytest.approx(1, rel=1e-5)
    # shares 1/2, 1/4, 1/4: entropy 1.5 ln 2
    assert rankme(with_spectrum([2.0, 1.0, 1.0])) == pytest.approx(2**1.5, rel=1e-5)
    shares = [2.0**-i for i in range(12)]
    entropy = -sum(s / sum(shares) * math.log(s / sum(shares)) for s in shares)
    assert rankme(with_spectrum(shares).float()) == pytest.approx(math.exp(entropy), rel=1e-4)


def test_rankme_is_scale_invariant_and_0_for_zeros() -> None:
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(1))
    assert rankme(1000 * x) == pytest.approx(rankme(x), rel=1e-6)
    assert rankme(torch.zeros(30, 5)) == 0


def test_alignment_by_hand() -> None:
    a = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    assert alignment(a, 5 * a) == 0
    # a quarter turn is sqrt(2) away, the opposite 2
    assert alignment(a, torch.tensor([[0.0, 1.0], [0.0, -1.0]])) == pytest.approx((2 + 4) / 2)


def test_uniformity_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    # squared distances 2, 2 and 4
    expected = math.log((2 * math.exp(-4) + math.exp(-8)) / 3)
    assert uniformity(x) == pytest.approx(expected, rel=1e-6)
    monkeypatch.setattr(health, "_PAIRS_AT_ONCE", 3)  # a row at a time
    assert uniformity(x) == pytest.approx(expected, rel=1e-6)
    assert uniformity(torch.ones(4, 3)) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="two vectors or more"):
        uniformity(x[:1])


def test_uniform_vectors_are_healthy() -> None:
    x = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    result = measure_health(x)
    assert result.spread == pytest.approx(1, abs=0.02)
    assert result.uniformity == pytest.approx(-3.8, abs=0.2)  # about -4 + 8 / C in C dimensions
    assert result.rank > 60
    assert (result.directions, result.dead, result.n) == (64, 0, 4000)
    assert collapse_warning(result, what="the vectors") == ""


def test_the_spread_by_hand() -> None:
    # unit vectors (1, 0) and (0, 1): each channel is 0 or 1, its standard deviation 1/2
    result = measure_health(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    assert result.spread == pytest.approx(0.5 * math.sqrt(2))
    assert result.least_std == pytest.approx(0.5 * math.sqrt(2))


def test_dead_channels_are_counted() -> None:
    x = torch.randn(100, 6, generator=torch.Generator().manual_seed(0))
    x[:, 4:] = 0
    assert measure_health(x).dead == 2


def test_bfloat16_vectors_are_measured_in_float32() -> None:
    x = torch.randn(100, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert measure_health(x) == measure_health(x.float())


def test_a_collapse_is_reported() -> None:
    rng = torch.Generator().manual_seed(0)
    healthy = measure_health(torch.randn(200, 32, generator=rng))
    same = measure_health(torch.ones(200, 32) + 0.02 * torch.randn(200, 32, generator=rng))
    warning = collapse_warning(same, what="the global vectors", before=healthy)
    assert warning.startswith("collapse: the global vectors of all 200 images are nearly equal (spread 0.0")
    assert "the spread was 1.0" in warning or "the spread was 0.9" in warning
    # vectors of a new network may be similar too, so the warning says both
    assert "not yet spread, or collapsed" in collapse_warning(same, what="the global vectors")
    assert "not yet spread" in collapse_warning(same, what="the global vectors", before=same)


def test_a_collapse_to_few_directions() -> None:
    rng = torch.Generator().manual_seed(0)
    healthy = measure_health(torch.randn(200, 64, generator=rng))
    flat = measure_health(F.pad(torch.randn(200, 2, generator=rng), (0, 62)))
    assert flat.spread < 1
    assert collapse_warning(flat, what="the vectors") == ""  # nothing to compare with
    assert "partial collapse: the vectors have an effective rank of 2.0 of 64; it was 6" in collapse_warning(
        flat, what="the vectors", before=healthy
    )


@pytest.mark.parametrize(
    ("step", "batch", "queue", "expected"),
    [
        (0, 32, 256, (0, 0)),
        (1, 32, 256, (0, 32)),
        (3, 32, 256, (2, 96)),
        (8, 32, 256, (7, 256)),
        (1000, 32, 256, (7, 256)),
        (1000, 256, 65536, (255, 65536)),
        (9, 48, 100, (2, 100)),  # the queue contains two batches and four keys of the third
        (5, 64, 32, (0, 32)),
    ],
)
def test_the_age_of_the_oldest_key(step: int, batch: int, queue: int, expected: tuple[int, int]) -> None:
    assert queue_age(step, batch, queue) == expected
