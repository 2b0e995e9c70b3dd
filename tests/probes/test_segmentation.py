"""Linear segmentation and dense retrieval on known features: equal to scikit-learn, perfect, or at chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from needs import need
from resim.probes.dense import (
    ALL,
    Cells,
    cell_shares,
    gather_cells,
    level_maps,
    level_names,
    sample_cells,
    upsample,
)
from resim.probes.label_maps import VOID
from resim.probes.linear import balanced_weights, fit_logistic
from resim.probes.retrieval import memory_images, retrieval_segmentation, retrieve
from resim.probes.segmentation import fit_cells, linear_segmentation
from resim.probes.segmentation_scores import Predictions, Segmentation


def scores(predicted: Predictions, num_classes: int, background: int | None = 0) -> Segmentation:
    classes = tuple(str(k) for k in range(num_classes))
    return Segmentation(confusion=predicted.confusion, classes=classes, background=background)


def halves(count: int, size: int, cells: int) -> tuple[Tensor, Tensor]:
    """Images whose left half has class i % 3 and right half class (i + 1) % 3, with maps that encode the classes."""
    labels = torch.empty((count, size, size), dtype=torch.int16)
    for i in range(count):
        labels[i, :, : size // 2], labels[i, :, size // 2 :] = i % 3, (i + 1) % 3
    shares = cell_shares(labels, 3, cells, cells)
    return labels, shares.transpose(1, 2).reshape(count, 3, cells, cells)


def noise(count: int, channels: int, cells: int, seed: int) -> Tensor:
    return torch.randn(count, channels, cells, cells, generator=torch.Generator().manual_seed(seed))


# -- cells and pixels


def test_a_cell_has_the_class_distribution_of_its_labelled_pixels() -> None:
    labels = torch.tensor([[[0, 0, 1, 1], [0, 2, VOID, 1], [VOID, VOID, 2, 2], [VOID, VOID, 2, 0]]])
    shares = cell_shares(labels, 3, 2, 2)[0]
    assert shares.tolist() == [[0.75, 0, 0.25], [0, 1, 0], [0, 0, 0], [0.25, 0, 0.75]]


def test_a_pixel_belongs_to_the_cell_that_contains_its_centre() -> None:
    labels = torch.tensor([[[0, 0, 1, 1, 1]] * 5])
    # centres 0.5, 1.5 | 2.5 is the edge of two cells and belongs to the second | 3.5, 4.5
    assert cell_shares(labels, 2, 1, 2)[0].tolist() == [[1, 0], [0, 1]]


def test_scores_of_cells_are_interpolated_between_the_centres_of_their_tiles() -> None:
    rows = upsample(torch.tensor([[[[0.0, 4.0], [0.0, 4.0]]]]), 8)[0, 0]
    assert rows[0].tolist() == [0, 0, 0.5, 1.5, 2.5, 3.5, 4, 4]


def test_all_levels_are_resized_to_the_finest_and_concatenated() -> None:
    maps = {"C3": noise(2, 3, 4, 0), "C4": torch.full((2, 1, 2, 2), 7.0)}
    whole = level_maps(maps, ALL, slice(1, 2))
    assert whole.shape == (1, 4, 4, 4)
    assert whole[:, :3].equal(maps["C3"][1:2])
    assert (whole[:, 3] == 7).all()
    assert level_names(maps, with_all=True) == ("C3", "C4", ALL)
    assert level_names({"C3": maps["C3"]}, with_all=True) == ("C3",)


def test_labelled_cells_are_sampled_per_image_by_seed() -> None:
    labels = torch.zeros((4, 8, 8), dtype=torch.int16)
    labels[1, :, 2:] = VOID  # of the four columns of cells one is labelled
    cells = sample_cells(labels, 2, (4, 4), most=24, seed=0)
    assert torch.bincount(cells.image).tolist() == [6, 4, 6, 6]
    assert cells.cell[cells.image == 1].tolist() == [0, 4, 8, 12]
    again = sample_cells(labels, 2, (4, 4), most=24, seed=0)
    assert cells.cell.equal(again.cell)
    assert not cells.cell.equal(sample_cells(labels, 2, (4, 4), most=24, seed=1).cell)
    alone = sample_cells(labels, 2, (4, 4), most=6, seed=0, images=[2])
    assert alone.cell.equal(cells.cell[cells.image == 2])  # independent of the other images
    maps = {"C4": noise(4, 5, 4, 0).half()}
    features = gather_cells(maps, "C4", cells)
    assert features.dtype == torch.float32
    assert features[7].equal(maps["C4"][1, :, 1, 0].float())


# -- linear segmentation


@pytest.mark.parametrize("strength", [1.0, 1e-2])
def test_the_fit_equals_scikit_learn_with_balanced_classes(strength: float) -> None:
    sklearn = need("sklearn.linear_model", "the classifier is scikit-learn's", "test")
    rng = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 200 + [1] * 60 + [2] * 10 + [3] * 30)
    centres = torch.randn(4, 6, generator=rng, dtype=torch.float64)
    features = torch.randn(300, 6, generator=rng, dtype=torch.float64) + centres[labels]
    weights = balanced_weights(labels, 4)
    assert weights.tolist() == pytest.approx([300 / 800, 300 / 240, 300 / 40, 300 / 120])
    ours = fit_logistic(features, labels, num_classes=4, strength=strength, class_weights=weights, tolerance=1e-7)
    model = sklearn.LogisticRegression(
        C=1 / (300 * strength), class_weight="balanced", solver="newton-cholesky", tol=1e-10
    )
    theirs = model.fit(features.numpy(), labels.numpy())
    assert ours.converged
    near = 1e-7 * 24**0.5 / strength + 1e-6  # a gradient of g leaves weights within |g| / strength
    assert ours.weight.numpy() == pytest.approx(theirs.coef_, abs=near)
    bias = ours.bias - ours.bias.mean()
    assert bias.numpy() == pytest.approx(theirs.intercept_ - theirs.intercept_.mean(), abs=10 * near)


def test_the_classifier_of_cells_equals_scikit_learn_on_standardised_cells() -> None:
    sklearn = need("sklearn.linear_model", "the classifier is scikit-learn's", "test")
    rng = torch.Generator().manual_seed(1)
    labels = torch.arange(240) % 3 * (torch.rand(240, generator=rng) < 0.7).long()  # class 0 is the most frequent
    centres = torch.randn(3, 5, generator=rng)
    features = 3 * (torch.randn(240, 5, generator=rng) + centres[labels]) + 10
    cells = Cells(image=torch.arange(240) // 12, cell=torch.arange(240) % 12, shares=torch.eye(3)[labels])
    ours = fit_cells(features, cells, strengths=[0.01], tolerance=1e-7)
    x = features.double().numpy()
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    theirs = sklearn.LogisticRegression(
        C=1 / (240 * 0.01), class_weight="balanced", solver="newton-cholesky", tol=1e-10
    ).fit(x, labels.numpy())
    fresh = torch.randn(50, 5, generator=rng) * 4 + 10
    z = (fresh.double().numpy() - features.double().numpy().mean(axis=0)) / features.double().numpy().std(axis=0)
    our_scores = ours.scores(fresh.double().T.reshape(1, 5, 5, 10)).flatten(2)[0].T
    their_scores = theirs.decision_function(z)
    assert (our_scores - our_scores.mean(dim=1, keepdim=True)).numpy() == pytest.approx(
        their_scores - their_scores.mean(axis=1, keepdims=True), abs=1e-4
    )


def test_the_strength_is_the_best_on_held_out_images() -> None:
    labels, maps = halves(30, 16, 4)
    cells = sample_cells(labels, 3, (4, 4), most=10_000, seed=0)
    features = gather_cells({"C4": maps + 0.5 * noise(30, 3, 4, 0)}, "C4", cells)
    fit = fit_cells(features, cells)
    best = max(miou for _, miou in fit.held_out)
    assert fit.strength == next(strength for strength, miou in fit.held_out if miou == best)
    assert fit.converged


@pytest.mark.parametrize(("size", "cells"), [(16, 4), (32, 4), (32, 8), (64, 2)])
def test_features_that_encode_the_labels_score_1_at_any_resolution(size: int, cells: int) -> None:
    labels, maps = halves(12, size, cells)
    results = linear_segmentation({"C4": maps}, labels, {"C4": maps}, labels, num_classes=3)
    assert scores(results["C4"], 3).value() == 1.0
    assert scores(results["C4"], 3).value("foreground_iou") == 1.0
    assert scores(results["C4"], 3).value("mean_accuracy") == 1.0
    retrieved = retrieval_segmentation({"C4": maps}, labels, {"C4": maps}, labels, num_classes=3, k=3, shares=[1.0])
    assert scores(retrieved[1.0, "C4"], 3).value() == 1.0


def test_noise_scores_at_chance() -> None:
    # two classes with half of the cells each, predicted independently of the truth: IoU is 1/4 over 3/4
    labels = torch.randint(0, 2, (40, 8, 8), generator=torch.Generator().manual_seed(0))
    labels = labels.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    train, test = {"C4": noise(40, 3, 8, 1)}, {"C4": noise(40, 3, 8, 2)}
    results = linear_segmentation(train, labels, test, labels, num_classes=2)
    assert scores(results["C4"], 2).value() == pytest.approx(1 / 3, abs=0.03)
    retrieved = retrieval_segmentation(train, labels, test, labels, num_classes=2, shares=[1.0])
    assert scores(retrieved[1.0, "C4"], 2).value() == pytest.approx(1 / 3, abs=0.03)


def test_all_levels_combine_the_information_of_each() -> None:
    labels, maps = halves(12, 16, 4)
    first, second = maps.clone(), maps.clone()
    first[:, 1:], second[:, :2] = 0, 0  # one encodes class 0, the other class 2
    results = linear_segmentation(
        {"C3": first, "P3": second}, labels, {"C3": first, "P3": second}, labels, num_classes=3
    )
    assert list(results) == ["C3", "P3", ALL]
    assert scores(results[ALL], 3).value() == 1.0
    assert scores(results["C3"], 3).value() < 1.0


def test_a_class_without_training_cells_is_never_predicted() -> None:
    labels, maps = halves(12, 16, 4)
    results = linear_segmentation({"C4": maps}, labels, {"C4": maps}, labels, num_classes=5)
    assert results["C4"].confusion.shape == (12, 5, 5)
    assert results["C4"].confusion[:, :, 3:].sum() == 0
    assert results["C4"].details["classes_fitted"] == 3


def test_void_pixels_are_ignored() -> None:
    labels, maps = halves(12, 16, 4)
    test = labels.clone()
    test[:, :5] = VOID
    results = linear_segmentation({"C4": maps}, labels, {"C4": maps}, test, num_classes=3)
    assert results["C4"].confusion.sum() == 12 * 11 * 16
    nothing = torch.full_like(labels, VOID)
    with pytest.raises(ValueError, match="no labelled cell"):
        retrieval_segmentation({"C4": maps}, nothing, {"C4": maps}, test, num_classes=3)
    hidden = labels.clone()
    hidden[:, :, 4:] = VOID  # void in training: only the other cells are fitted
    other = labels.clone()
    other[:, :, 4:] = VOID
    fits = [linear_segmentation({"C4": maps}, each, {"C4": maps}, test, num_classes=3) for each in (hidden, other)]
    assert np.array_equal(fits[0]["C4"].confusion, fits[1]["C4"].confusion)
    assert fits[0]["C4"].details["cells"] == 12 * 4


def test_examples_are_predictions_in_the_requested_order() -> None:
    labels, maps = halves(40, 16, 4)
    results = linear_segmentation({"C4": maps}, labels, {"C4": maps}, labels, num_classes=3, examples=[35, 2])
    assert (results["C4"].examples == labels[[35, 2]].numpy()).all()
    retrieved = retrieval_segmentation(
        {"C4": maps}, labels, {"C4": maps}, labels, num_classes=3, k=1, shares=[1.0], examples=[35, 2]
    )
    assert (retrieved[1.0, "C4"].examples == labels[[35, 2]].numpy()).all()


def test_a_single_class_is_predicted_everywhere() -> None:
    labels, maps = halves(3, 16, 4)
    results = linear_segmentation({"C4": maps}, labels * 0 + 2, {"C4": maps}, labels, num_classes=3)
    assert results["C4"].confusion[:, :, 2].sum() == labels.numel()
    assert (results["C4"].details["classes_fitted"], results["C4"].details["strength"]) == (1, None)


def test_one_image_or_no_label_is_an_error() -> None:
    labels, maps = halves(2, 16, 4)
    with pytest.raises(ValueError, match="no labelled cell"):
        linear_segmentation({"C4": maps}, labels * 0 + VOID, {"C4": maps}, labels, num_classes=3)
    with pytest.raises(ValueError, match="one training image"):
        linear_segmentation({"C4": maps[:1]}, labels[:1], {"C4": maps}, labels, num_classes=3)


# -- dense retrieval


def test_neighbours_equal_those_of_scikit_learn() -> None:
    neighbours = need("sklearn.neighbors", "the neighbours are scikit-learn's", "test")
    rng = torch.Generator().manual_seed(0)
    keys = torch.nn.functional.normalize(torch.randn(200, 8, generator=rng, dtype=torch.float64), dim=1)
    queries = torch.nn.functional.normalize(torch.randn(50, 8, generator=rng, dtype=torch.float64), dim=1)
    values = torch.rand(200, 4, generator=rng, dtype=torch.float64)
    values /= values.sum(dim=1, keepdim=True)
    model = neighbours.NearestNeighbors(n_neighbors=7, metric="cosine").fit(keys.numpy())
    distance, index = model.kneighbors(queries.numpy())
    weights = np.exp((1 - distance) / 0.1)
    weights /= weights.sum(axis=1, keepdims=True)
    expected = np.einsum("qk,qkc->qc", weights, values.numpy()[index])
    assert retrieve(keys, values, queries, k=7, temperature=0.1).numpy() == pytest.approx(expected, abs=1e-9)


def test_attention_by_hand() -> None:
    keys, values = torch.eye(2, dtype=torch.float64), torch.tensor([[1.0, 0.0], [0.25, 0.75]], dtype=torch.float64)
    query = torch.tensor([[0.8, 0.6]], dtype=torch.float64)
    weight = 1 / (1 + np.exp(-2))  # of the first key: similarities differ by 0.2 at a temperature of 0.1
    classes = retrieve(keys, values, query, k=5, temperature=0.1)[0].tolist()
    assert classes == pytest.approx([weight + 0.25 * (1 - weight), 0.75 * (1 - weight)])
    assert retrieve(keys, values, query, k=1)[0].tolist() == [1, 0]


def test_smaller_memories_are_subsets_of_larger_ones() -> None:
    sets = [set(memory_images(200, share, 3)) for share in (0.01, 0.1, 1.0)]
    assert [len(images) for images in sets] == [2, 20, 200]
    assert sets[0] < sets[1] < sets[2]
    assert memory_images(200, 0.1, 3) != memory_images(200, 0.1, 4)
    assert memory_images(3, 0.01, 0) != []


def test_the_memory_is_bounded_and_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, maps = halves(12, 16, 4)
    maps = maps + 0.3 * noise(12, 3, 4, 0)
    settings = {"num_classes": 3, "shares": [0.5, 1.0], "most_cells": 40, "k": 5}
    whole = retrieval_segmentation({"C4": maps}, labels, {"C4": maps}, labels, **settings)
    assert [whole[share, "C4"].details["cells"] for share in (0.5, 1.0)] == [36, 36]
    monkeypatch.setattr("resim.probes.retrieval._SIMILARITIES_AT_ONCE", 100)
    parts = retrieval_segmentation({"C4": maps}, labels, {"C4": maps}, labels, **settings)
    assert np.array_equal(whole[1.0, "C4"].confusion, parts[1.0, "C4"].confusion)


def test_a_share_or_temperature_out_of_range_is_an_error() -> None:
    labels, maps = halves(3, 16, 4)
    with pytest.raises(ValueError, match="share 2"):
        retrieval_segmentation({"C4": maps}, labels, {"C4": maps}, labels, num_classes=3, shares=[2])
    with pytest.raises(ValueError, match="temperature 0"):
        retrieve(torch.eye(2), torch.eye(2), torch.eye(2), temperature=0)
    with pytest.raises(ValueError, match="of 0 cells"):
        retrieve(torch.eye(2)[:0], torch.eye(2)[:0], torch.eye(2))
