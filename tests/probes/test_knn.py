"""Weighted nearest neighbours, accuracy and its intervals, compared with numbers by hand and with scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from needs import need
from resim.probes import knn
from resim.probes.accuracy import accuracy
from resim.probes.intervals import difference, interval, resample
from resim.probes.knn import knn_votes


def points(n: int, c: int = 16, k: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(k, c, generator=torch.Generator().manual_seed(9))
    labels = torch.randint(0, k, (n,), generator=rng)
    return centres[labels] + 1.5 * torch.randn(n, c, generator=rng), labels


@pytest.mark.slow
@pytest.mark.parametrize(("k", "temperature"), [(200, 0.07), (1, 0.07), (15, 0.5), (400, 1.0)])
def test_votes_equal_those_of_scikit_learn(k: int, temperature: float) -> None:
    neighbors = need("sklearn.neighbors", "the kNN vote is scikit-learn's", "test")
    (bank, labels), (queries, _) = points(400), points(150, seed=1)
    theirs = neighbors.KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d.astype(np.float64)) / temperature)
    ).fit(bank.double().numpy(), labels.numpy())
    ours = knn_votes(bank.double(), labels, queries.double(), num_classes=7, k=k, temperature=temperature)
    assert ours.argmax(dim=1).tolist() == theirs.predict(queries.double().numpy()).tolist()
    shares = (ours / ours.sum(dim=1, keepdim=True)).numpy()
    assert shares == pytest.approx(theirs.predict_proba(queries.double().numpy()), abs=1e-9)


def test_three_neighbours_by_hand() -> None:
    # cosines with the query (1, 0): 1, 0.6, 0.8, -1; the three best vote, one of class 0 and two of class 1
    bank = torch.tensor([[2.0, 0.0], [3.0, 4.0], [4.0, 3.0], [-1.0, 0.0]])
    votes = knn_votes(bank, torch.tensor([0, 1, 1, 0]), torch.tensor([[5.0, 0.0]]), num_classes=3, k=3, temperature=0.5)
    expected = [1.0, math.exp(-0.2 / 0.5) + math.exp(-0.4 / 0.5), 0.0]
    assert votes[0].tolist() == pytest.approx(expected, rel=1e-6)


def test_a_small_temperature_does_not_overflow() -> None:
    bank, labels = points(50)
    votes = knn_votes(bank, labels, bank, num_classes=7, k=50, temperature=1e-4)
    assert votes.isfinite().all()
    assert votes.argmax(dim=1).equal(labels)  # each is its own nearest neighbour


def test_bfloat16_features_are_compared_in_float32() -> None:
    (bank, labels), (queries, _) = points(60), points(20, seed=1)
    half = knn_votes(bank.bfloat16(), labels, queries.bfloat16(), num_classes=7, k=20)
    wide = knn_votes(bank.bfloat16().float(), labels, queries.bfloat16().float(), num_classes=7, k=20)
    assert half.dtype == torch.float32
    assert half.equal(wide)


def test_votes_do_not_depend_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    (bank, labels), (queries, _) = points(60), points(33, seed=1)
    whole = knn_votes(bank, labels, queries, num_classes=7, k=10)
    monkeypatch.setattr(knn, "_SIMILARITIES_AT_ONCE", 60 * 4)
    parts = knn_votes(bank, labels, queries, num_classes=7, k=10)
    assert parts.numpy() == pytest.approx(whole.numpy(), rel=1e-5)


def test_k_and_temperature_out_of_range_are_errors() -> None:
    bank, labels = points(10)
    for k in (0, 11):
        with pytest.raises(ValueError, match=f"k {k}: must be from 1 to the 10 training images"):
            knn_votes(bank, labels, bank, num_classes=7, k=k)
    with pytest.raises(ValueError, match="temperature 0: must be above 0"):
        knn_votes(bank, labels, bank, num_classes=7, k=1, temperature=0)


# -- accuracy and intervals


def test_accuracy_by_hand() -> None:
    scores = torch.tensor(
        [[9.0, 1, 2, 3, 4, 5, 6], [1, 9, 9, 2, 2, 2, 2], [1, 9, 9, 2, 2, 2, 2], [0, 1, 2, 3, 4, 5, 6]]
    )
    result = accuracy(scores, torch.tensor([0, 1, 2, 0]))
    assert result.top1.tolist() == [True, True, False, False]  # of equal scores the first ranks first
    assert result.top5.tolist() == [True, True, True, False]
    assert result.share == 0.5
    assert result.chance == 0.5  # two of the four images have class 0
    assert result.to_json()["n"] == 4


def test_scores_and_classes_of_different_lengths_are_errors() -> None:
    for labels in (torch.zeros(3, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)):
        with pytest.raises(ValueError, match="scores"):
            accuracy(torch.zeros(len(labels) and 4, 2), labels)


def test_the_interval_of_a_fraction_is_binomial() -> None:
    correct = np.arange(1000) % 10 < 3
    low, high = interval(correct, np.ones(1000))
    spread = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert (low, high) == pytest.approx((0.3 - spread, 0.3 + spread), abs=0.003)


@pytest.mark.slow
def test_a_million_images_are_resampled() -> None:
    correct = np.arange(1_000_000) % 4 == 0
    shares = resample(correct, np.ones(1_000_000, dtype=np.int64))
    assert shares.shape == (2000,)
    assert shares.std() == pytest.approx(math.sqrt(0.25 * 0.75 / 1_000_000), rel=0.1)


def test_resampling_by_kind_equals_resampling_single_images() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 9, 60)
    correct = rng.binomial(counts, 0.4)
    samples = rng.integers(60, size=(20000, 60))
    one_by_one = correct[samples].sum(axis=1) / counts[samples].sum(axis=1)
    shares = resample(correct, counts)
    assert shares.mean() == pytest.approx(one_by_one.mean(), abs=5 * one_by_one.std() / 2000**0.5)
    assert shares.std() == pytest.approx(one_by_one.std(), rel=0.1)


def test_the_difference_of_two_on_the_same_images() -> None:
    a, b = np.array([True, True, False, False] * 50), np.array([True, False, False, False] * 50)
    points_, low, high = difference(a, b, np.ones(200))
    assert points_ == 0.25
    # pairs: 1 in a quarter of the images, else 0
    spread = 1.96 * math.sqrt(0.25 * 0.75 / 200)
    assert (low, high) == pytest.approx((0.25 - spread, 0.25 + spread), abs=0.01)


def test_scores_with_nan_are_errors() -> None:
    with pytest.raises(ValueError, match="NaN"):
        accuracy(torch.full((3, 2), math.nan), torch.tensor([0, 1, 1]))
