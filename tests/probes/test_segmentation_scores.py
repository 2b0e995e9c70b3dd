"""mIoU, mean accuracy and foreground IoU by hand; bootstraps over two images by enumeration."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from resim.probes.label_maps import VOID
from resim.probes.segmentation_scores import Segmentation, bootstrap_weights, confusions, difference
from resim.probes.suite import Score
from resim.probes.tables import to_json
from resim.probes.verdict import verdicts


def of(*matrices: list[list[int]], background: int | None = 0) -> Segmentation:
    confusion = np.array(matrices, dtype=np.int32)
    return Segmentation(confusion=confusion, classes=tuple("abcd"[: confusion.shape[1]]), background=background)


def test_pixels_are_counted_per_image_without_void() -> None:
    truth = torch.tensor([[[0, 1], [1, VOID]], [[2, 2], [0, 0]]])
    predicted = torch.tensor([[[0, 1], [2, 2]], [[2, 0], [0, 1]]])
    counts = confusions(truth, predicted, 3)
    assert counts[0].tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]
    assert counts[1].tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 1]]


def test_measures_by_hand() -> None:
    value = of([[6, 2, 0], [1, 3, 0], [0, 2, 6]])
    # a: 6 / (8 + 7 - 6), b: 3 / (4 + 7 - 3), c: 6 / (8 + 6 - 6)
    assert value.value() == pytest.approx((6 / 9 + 3 / 8 + 6 / 8) / 3)
    assert value.value("mean_accuracy") == pytest.approx((6 / 8 + 3 / 4 + 6 / 8) / 3)
    # foreground: b or c, where true and predicted 11, where either 14
    assert value.value("foreground_iou") == pytest.approx(11 / 14)
    assert value.constant == pytest.approx(8 / 20 / 3)
    assert value.class_ious() == pytest.approx({"a": 6 / 9, "b": 3 / 8, "c": 6 / 8})


def test_a_class_without_true_pixels_is_not_averaged() -> None:
    value = of([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    assert value.value() == pytest.approx((6 / 9 + 3 / 6) / 2)
    wrong = of([[6, 0, 2], [1, 3, 0], [0, 0, 0]])
    assert wrong.value() == pytest.approx((6 / 9 + 3 / 4) / 2)


def test_without_a_background_there_is_no_foreground() -> None:
    value = of([[1, 0], [0, 1]], background=None)
    assert np.isnan(value.value("foreground_iou"))
    assert "foreground_iou" not in value.to_json()


def test_the_bootstrap_of_two_images_by_hand() -> None:
    good, bad = [[4, 0], [0, 4]], [[2, 2], [4, 0]]
    value = of(good, bad)
    # samples are: twice the first image, one of each (half of the time), twice the second
    both = [[6, 2], [4, 4]]
    possible = [of(good).value(), of(both).value(), of(bad).value()]
    assert possible == pytest.approx([1, (6 / 12 + 4 / 10) / 2, (2 / 8) / 2])
    assert value.value() == pytest.approx(possible[1])
    samples = value.bootstrap("miou")
    assert sorted(set(np.round(samples, 9))) == pytest.approx(sorted(possible))
    assert np.mean(np.isclose(samples, possible[1])) == pytest.approx(0.5, abs=0.05)
    assert value.interval() == pytest.approx((possible[2], possible[0]))


def test_a_class_missing_from_a_sample_keeps_its_value() -> None:
    first, second = [[4, 0], [0, 0]], [[1, 1], [2, 2]]
    value = of(first, second)  # b occurs only in the second image: 2 / (4 + 3 - 2)
    assert value.value() == pytest.approx((5 / 8 + 2 / 5) / 2)
    twice = [(4 / 4 + 2 / 5) / 2, (1 / 4 + 2 / 5) / 2]
    assert value.interval() == pytest.approx((min(twice), max(twice)))


def test_differences_are_paired_over_images() -> None:
    first, second = [[4, 0], [0, 4]], [[2, 2], [4, 0]]
    change = difference(of(first, second), of(first, second))
    assert change == (0, 0, 0)
    worse = of([[4, 0], [0, 4]], [[0, 4], [4, 0]])
    change = difference(of(first, second), worse)
    assert change is not None
    expected = [
        of(*a).value() - of(*b).value()
        for a, b in zip(
            itertools.product([first, second], repeat=2),
            itertools.product(worse.confusion.tolist(), repeat=2),
            strict=True,
        )
    ]
    assert change[0] == pytest.approx(expected[1])
    assert change[1:] == pytest.approx((min(expected), max(expected)))


def test_different_images_have_no_difference() -> None:
    assert difference(of([[1, 0], [0, 1]]), of([[2, 0], [0, 1]])) is None
    assert difference(of([[1, 0], [0, 1]]), of([[1, 0], [0, 1]], [[1, 0], [0, 1]])) is None


def test_bootstrap_samples_are_deterministic() -> None:
    weights = bootstrap_weights(5)
    assert (weights.sum(axis=1) == 5).all()
    assert np.array_equal(weights, bootstrap_weights.__wrapped__(5))


def test_a_verdict_is_a_sentence() -> None:
    rng = np.random.default_rng(0)

    def score(right: float) -> Score:
        matrices = [[[50, 50 - hit], [50 - hit, hit]] for hit in rng.binomial(50, right, 40)]
        confusion = np.array(matrices, dtype=np.int32)
        confusion[:, 0, 1], confusion[:, 0, 0] = 10, 40  # the same true labels everywhere
        return Score(value=Segmentation(confusion=confusion, classes=("a", "b"), background=0), details={})

    results = {
        "mine": {("segmentation", "C4"): score(0.9), ("segmentation", "P4"): score(0.5), ("health", "C4"): score(0.1)},
        "random": {("segmentation", "C4"): score(0.6), ("segmentation", "P4"): score(0.5)},
        "other": {("segmentation", "C5"): score(0.6)},
    }
    about = {name: {"kind": "untrained" if name == "random" else "a file"} for name in results}

    def content() -> dict[str, Any]:
        return {"networks": to_json(results, about, "random"), "reference": "random"}

    (sentence,) = verdicts(content())
    assert sentence.startswith("Linear segmentation, mIoU: mine is better than random by ")
    assert " on C4, where random is best; of 2 levels, 1 are better and 0 worse beyond noise" in sentence
    results["mine"]["segmentation", "C4"] = results["random"]["segmentation", "C4"]
    assert "mine is within noise of random: +0.0 points (+0.0 to +0.0) on C4" in verdicts(content())[0]
