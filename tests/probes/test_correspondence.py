"""Region correspondence: coordinate features match every region, random features match regions at chance."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from resim.probes.correspondence import Correspondence, correspondence, difference
from resim.views.views import Views

SIZE, STRIDE = 96, 8


def view_of(crops: Tensor, size: int = SIZE, flipped: Tensor | None = None) -> Views:
    """Views that show their own source coordinates: red is x, green is y, px of the source, at each pixel's edge."""
    edges = torch.arange(size, dtype=torch.float64) / size
    across = edges.expand(len(crops), size).clone()
    if flipped is not None:
        across[flipped] = 1 - across[flipped]
    top, left, height, width = crops.double().unbind(1)
    x = left[:, None] + across * width[:, None]
    y = top[:, None] + edges * height[:, None]
    images = torch.zeros(len(crops), 3, size, size, dtype=torch.float64)
    images[:, 0], images[:, 1] = x[:, None, :], y[:, :, None]
    return Views(images.float(), crops, flipped)


def random_pairs(count: int, *, flips: bool = False) -> list[tuple[Views, Views]]:
    """Pairs of crops of 150 to 250 px with a large overlap."""
    rng = torch.Generator().manual_seed(0)
    views = []
    for _ in range(2):
        corners = torch.randint(0, 60, (count, 2), generator=rng)
        sides = torch.randint(150, 250, (count, 2), generator=rng)
        flipped = torch.rand(count, generator=rng) < 0.5 if flips else None
        views.append(view_of(torch.cat([corners, sides], dim=1).double(), flipped=flipped))
    return [(views[0], views[1])]


def coordinate_features(images: Tensor) -> Tensor:
    """Random Fourier features of the source coordinates: the nearer two points, the more similar their vectors."""
    rng = torch.Generator().manual_seed(1)
    waves = torch.randn(512, 2, generator=rng) / 40  # a Gaussian kernel of 40 px
    phases = torch.rand(512, generator=rng) * 2 * math.pi
    points = images[:, :2, ::STRIDE, ::STRIDE]
    return torch.cos(torch.einsum("cd,ndhw->nchw", waves, points) + phases.view(1, -1, 1, 1))


def random_features() -> Callable[[Tensor], Tensor]:
    """A function that returns new random vectors on every call."""
    rng = torch.Generator().manual_seed(2)
    cells = SIZE // STRIDE
    return lambda images: torch.randn(len(images), 16, cells, cells, generator=rng)


# -- matches


@pytest.mark.parametrize("flips", [False, True])
def test_coordinate_features_match_every_region(flips: bool) -> None:
    # the last windows end at 88 px, at the last cells: beyond them a map is zero
    result = correspondence(coordinate_features, random_pairs(40, flips=flips), stride=STRIDE, window=24, step=16)
    assert result.windows.sum() > 300
    assert result.accuracy == 1.0
    assert result.interval() == (1.0, 1.0)
    assert np.array_equal(result.correct, result.windows)
    # the nearest cell is at most half the diagonal between four cells away
    assert result.median_error <= STRIDE / math.sqrt(2)
    assert result.radius == STRIDE


def test_features_flipped_against_their_views_match_few_regions() -> None:
    result = correspondence(
        lambda images: coordinate_features(images).flip(-1), random_pairs(24), stride=STRIDE, window=24, step=12
    )
    assert result.accuracy < 0.5


@pytest.mark.slow
def test_random_vectors_match_regions_at_chance() -> None:
    # windows of 8 px at every 32 px share no cell of a map of stride 8, so their matches are independent
    result = correspondence(random_features(), random_pairs(1000), stride=STRIDE, window=8, step=32, radius=16)
    n = int(result.windows.sum())
    assert n > 2000
    assert 0.05 < result.chance < 0.1  # up to 13 of the 144 cells lie within 16 px
    assert abs(result.accuracy - result.chance) < 4 * math.sqrt(result.chance * (1 - result.chance) / n)


def nine_windows(query_x: float = 0.0) -> Correspondence:
    """Views of 32 px of the same crop, windows of 8 px at every 8 px, of which the 9 that end before 32 px are inside.

    Only the key cell at pixel (0, 0) is similar to the query.
    """
    crop_q = torch.tensor([[0.0, query_x, 32.0, 32.0]])
    crop_k = torch.tensor([[0.0, 0.0, 32.0, 32.0]])
    query = Views(torch.ones(1, 3, 32, 32), crop_q)
    key = Views(torch.zeros(1, 3, 32, 32), crop_k)

    def features(images: Tensor) -> Tensor:
        maps = torch.zeros(1, 2, 4, 4)
        if images.sum() > 0:
            maps[:, 0] = 1
        else:
            maps[:, 1] = 1
            maps[:, :, 0, 0] = torch.tensor([1.0, 0.0])
        return maps

    return correspondence(features, [(query, key)], stride=8, window=8, step=8)


def test_nine_windows_by_hand() -> None:
    result = nine_windows()
    assert result.windows.tolist() == [9]
    # centres at 4, 12 and 20 px: only (4, 4) lies within 8 px of (0, 0), at 5.66 px
    assert result.correct.tolist() == [1]
    assert result.accuracy == pytest.approx(1 / 9)
    # of the nine distances 5.7, 12.6, 12.6, 17.0, 20.4, 20.4, 23.3, 23.3, 28.3 the fifth is that of (4, 20)
    assert result.median_error == pytest.approx(math.hypot(4, 20))
    # every centre lies in the middle of four cells, 5.66 px away, of sixteen
    assert result.chance == pytest.approx(4 / 16)
    assert result.radius == 8


def test_windows_outside_the_key_view_do_not_count() -> None:
    # the query starts 16 px further right: centres at 20 and 28 px, the latter end at 32 px or beyond
    result = nine_windows(query_x=16)
    assert result.windows.tolist() == [3]
    assert result.correct.tolist() == [0]
    assert result.median_error == pytest.approx(math.hypot(20, 12))


def test_several_batches_equal_one_batch() -> None:
    ((query, key),) = random_pairs(12)

    def parts() -> Iterator[tuple[Views, Views]]:
        for i in range(0, 12, 5):
            chosen = slice(i, i + 5)
            yield Views(query.images[chosen], query.crops[chosen]), Views(key.images[chosen], key.crops[chosen])

    whole = correspondence(coordinate_features, [(query, key)], stride=STRIDE, window=24, step=12, radius=4)
    split = correspondence(coordinate_features, parts(), stride=STRIDE, window=24, step=12, radius=4)
    assert 0.1 < whole.accuracy < 0.99
    assert np.array_equal(whole.correct, split.correct)
    assert np.array_equal(whole.windows, split.windows)
    assert (whole.chance, whole.median_error) == pytest.approx((split.chance, split.median_error))


def test_a_larger_radius_counts_more_matches_as_correct() -> None:
    scores = [
        correspondence(coordinate_features, random_pairs(12), stride=STRIDE, window=24, step=12, radius=radius)
        for radius in (1, 3, 6)
    ]
    for small, large in itertools.pairwise(scores):
        assert small.accuracy < large.accuracy
        assert small.chance < large.chance
        assert small.median_error == large.median_error


def test_nothing_to_measure_is_an_error() -> None:
    apart = (view_of(torch.tensor([[0.0, 0.0, 50.0, 50.0]])), view_of(torch.tensor([[100.0, 100.0, 50.0, 50.0]])))
    for pairs in ([apart], []):
        with pytest.raises(ValueError, match="no window of the query views lies inside its key view"):
            correspondence(coordinate_features, pairs, stride=STRIDE, window=24, step=12)


def test_a_window_larger_than_the_view_is_an_error() -> None:
    with pytest.raises(ValueError, match="no window of 100 px fits into a view of 96 px"):
        correspondence(coordinate_features, random_pairs(1), stride=STRIDE, window=100)


# -- intervals


def score(correct: list[int], windows: list[int]) -> Correspondence:
    return Correspondence(
        correct=np.array(correct), windows=np.array(windows), chance=0.1, median_error=5.0, radius=8.0
    )


def test_accuracy_is_a_fraction_of_windows_and_not_a_mean_over_images() -> None:
    assert score([1, 0], [1, 9]).accuracy == 0.1


def test_the_interval_of_a_hundred_coins_is_binomial() -> None:
    low, high = score([0, 1] * 50, [1] * 100).interval()
    # 1.96 * sqrt(0.25 / 100) = 0.098
    assert (low, high) == pytest.approx((0.402, 0.598), abs=0.015)
    assert score([0, 1] * 50, [1] * 100).interval() == (low, high)


def test_whole_images_are_resampled() -> None:
    # ten windows of one image carry no more information than one: the interval is that of a hundred coins
    assert score([0, 10] * 50, [10] * 100).interval() == score([0, 1] * 50, [1] * 100).interval()


def test_the_difference_of_two_and_its_interval() -> None:
    a, b = score([3, 4, 2, 5] * 10, [5] * 40), score([2, 3, 1, 4] * 10, [5] * 40)
    # `a` matches one window of five more in every image, whichever images are sampled
    assert difference(a, b) == pytest.approx((0.2, 0.2, 0.2))
    assert difference(b, a) == pytest.approx((-0.2, -0.2, -0.2))
    assert difference(a, a) == (0, 0, 0)


def test_the_interval_of_a_difference_within_noise_contains_0() -> None:
    a, b = score([5, 0] * 20, [5] * 40), score([0, 5] * 20, [5] * 40)
    change, low, high = difference(a, b)
    assert change == 0
    assert low < -0.2 < 0.2 < high


@pytest.mark.parametrize("windows", [[5, 4], [5, 5, 5]])
def test_scores_on_different_windows_have_no_difference(windows: list[int]) -> None:
    with pytest.raises(ValueError, match="the two are measured on different windows"):
        difference(score([1, 2], [5, 5]), score([1] * len(windows), windows))


def test_a_score_as_text() -> None:
    assert str(score([1] * 4, [2] * 4)) == (
        "50.0% [50.0%, 50.0%] within 8 px, chance 10.0%, median error 5 px, n = 8 windows of 4 images"
    )
