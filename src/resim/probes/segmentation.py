"""Linear segmentation: a linear classifier on the cells of a frozen map predicts the class of every pixel.

Shapes: N images of S x S px, a map of C channels and H x W cells, M training cells, K classes.

The classifier is multinomial logistic regression of a cell's majority class on its standardised features, with all
classes weighted equally. It minimises

    1 / M * sum over cells of M / (K' M_k) * cross-entropy + strength / 2 * |weight|^2

where k is the class of the cell, M_k the number of training cells of that class and K' the number of classes that have
training cells. A class without training cells is never predicted. If all cells of a coarse map have one majority class,
that class is predicted everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from resim.probes.config import SEGMENTATION_CELLS
from resim.probes.dense import (
    Cells,
    batches,
    gather_cells,
    level_maps,
    level_names,
    level_shape,
    sample_cells,
    upsample,
)
from resim.probes.linear import LinearFit, LogisticProblem, balanced_weights
from resim.probes.segmentation_scores import Predictions, confusions
from resim.probes.unlabelled import ProbeProgress

STRENGTHS = (1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)
_WORSE_IN_A_ROW = 2
_COPIES = 5  # copies of the features in memory during a fit
_EXACT_VALUES = 2**23  # features with at most this many values are fitted in float64


@dataclass(frozen=True, kw_only=True)
class CellClassifier:
    """A linear classifier of cells."""

    weight: Tensor
    """(K', C), for features that are not standardised."""
    bias: Tensor
    """(K',)."""
    present: Tensor
    """(K',) int64, the classes with training cells, in the order of the scores."""
    strength: float | None
    """Of the L2 penalty; None: there is one class, and nothing is fitted."""
    held_out: tuple[tuple[float, float], ...]
    """The strengths tried, with their mIoU over the cells of the held-out images."""
    num_cells: int
    """Number of training cells."""
    gradient: float
    """Largest entry of the gradient of the objective at the solution."""
    converged: bool
    """Whether `gradient` is at most the tolerance."""
    evaluations: int
    """Number of evaluations of the objective and its gradient, over all strengths."""

    def scores(self, maps: Tensor) -> Tensor:
        """Class scores (n, K', H, W) of maps (n, C, H, W)."""
        return torch.nn.functional.conv2d(maps, self.weight[:, :, None, None].to(maps), self.bias.to(maps))

    def predict(self, maps: Tensor, size: int) -> Tensor:
        """Predict (n, size, size) int64 classes of maps (n, C, H, W): the maximum of the interpolated scores."""
        return self.present.to(maps.device)[upsample(self.scores(maps), size).argmax(dim=1)]


def linear_segmentation(
    train: Mapping[str, Tensor],
    train_labels: Tensor,
    test: Mapping[str, Tensor],
    test_labels: Tensor,
    *,
    num_classes: int,
    levels: Sequence[str] = (),
    with_all: bool = True,
    most_cells: int = SEGMENTATION_CELLS,
    memory: float = 4.0,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
    examples: Sequence[int] = (),
    device: torch.device | str = "cpu",
    progress: ProbeProgress | None = None,
) -> dict[str, Predictions]:
    """Fit a linear classifier to each map of a network, and predict the labels of test images.

    Args:
        train: maps of the training images by level, (N, C, H, W) of any floating dtype.
        train_labels: (N, S, S) integers: classes, or VOID (-1).
        test: maps of the test images.
        test_labels: of the test images.
        num_classes: K.
        levels: of the maps; empty: all of them.
        with_all: whether "all", the concatenation of all maps, is a level too.
        most_cells: maximum number of training cells of a level, equally many of each image, sampled at random.
        memory: maximum memory of a fit, GiB; maps with many channels have fewer cells if necessary.
        strengths: of the L2 penalty, to choose from.
        seed: of the cells, and of the fifth of the training images on which the strength is chosen.
        examples: test images whose predicted maps are kept.
        device: on which to compute.
        progress: reports the level that is being fitted.

    Returns:
        By level, the confusion matrix of each image, from which the caller computes scores, differences and intervals.

    Raises:
        ValueError: there is no labelled training cell, or there are fewer than two training images.
    """
    train_maps = {level: train[level] for level in levels} if levels else dict(train)
    test_maps = {level: test[level] for level in train_maps}
    results = {}
    for level in level_names(train_maps, with_all=with_all):
        if progress is not None:
            progress(f"linear segmentation, {level}", 0, 0)
        channels, height, width = level_shape(train_maps, level)
        most = min(most_cells, int(memory * 2**30 / (4 * _COPIES * channels)))
        cells = sample_cells(train_labels, num_classes, (height, width), most=most, seed=seed)
        features = gather_cells(train_maps, level, cells, device)
        classifier = fit_cells(features, cells, strengths=strengths, seed=seed)
        confusion, shown = [], []
        for rows in batches(len(test_labels)):
            predicted = classifier.predict(level_maps(test_maps, level, rows, device), test_labels.shape[-1]).cpu()
            confusion.append(confusions(test_labels[rows], predicted, num_classes))
            shown += [(i, predicted[i - rows.start]) for i in examples if rows.start <= i < rows.stop]
        results[level] = Predictions(
            confusion=np.concatenate(confusion),
            examples=_in_order(shown, examples, test_labels.shape[-1]),
            details={
                "n_train": len(train_labels),
                "cells": len(cells),
                "grid": [height, width],
                "channels": channels,
                "classes_fitted": len(classifier.present),
                "strength": classifier.strength,
                "held_out": [list(pair) for pair in classifier.held_out],
                "gradient": classifier.gradient,
                "converged": classifier.converged,
                "evaluations": classifier.evaluations,
            },
        )
    return results


def fit_cells(
    features: Tensor, cells: Cells, *, strengths: Sequence[float] = STRENGTHS, seed: int = 0, tolerance: float = 1e-4
) -> CellClassifier:
    """Choose the strength on a held-out fifth of the images, then fit all cells.

    Strengths are tried in descending order, each from the previous solution, until the mIoU over the held-out cells has
    fallen twice in a row; of equals the strongest is chosen. Up to 8 million values are fitted in float64, more in
    float32.

    Args:
        features: (M, C).
        cells: M cells.
        strengths: of the L2 penalty, for standardised features.
        seed: of the held-out images.
        tolerance: largest entry of the gradient at convergence.

    Raises:
        ValueError: there are no cells, one image, or no strengths.
    """
    if not len(cells):
        raise ValueError("the training images have no labelled cell")
    labels = cells.shares.argmax(dim=1)
    present, labels = torch.unique(labels, return_inverse=True)
    if len(present) < 2:
        return _constant(features, present, len(cells))
    images = torch.unique(cells.image)
    if len(images) < 2:
        raise ValueError("there is one training image: none can be held out to choose the strength of the penalty")
    if not strengths:
        raise ValueError("there is no strength of the penalty to choose from")
    dtype = torch.float64 if features.numel() <= _EXACT_VALUES else torch.float32
    x, labels = features.to(dtype), labels.to(features.device)
    mean, std = x.mean(dim=0), x.std(dim=0, correction=0)
    scale = torch.where(
        std > 1e-12 * mean.abs().clamp(min=1e-12), 1 / std.clamp(min=1e-30), 0.0
    )  # 0 for constant channels
    x = (x - mean).mul_(scale)
    order = np.random.default_rng([12, seed]).permutation(len(images))[: max(1, round(0.2 * len(images)))]
    is_held_out = torch.isin(cells.image, images[torch.from_numpy(order)]).to(x.device)
    tried, best, evaluations = _choose_strength(x, labels, is_held_out, len(present), strengths, tolerance)
    problem = LogisticProblem(
        x, labels, len(present), class_weights=balanced_weights(labels, len(present)), dtype=dtype
    )
    final = problem.solve(best.strength, tolerance=tolerance, start=best, most_evaluations=500)
    weight = final.weight * scale
    return CellClassifier(
        weight=weight.float() if dtype == torch.float32 else weight,
        bias=final.bias - weight @ mean,
        present=present,
        strength=best.strength,
        held_out=tuple(tried),
        num_cells=len(cells),
        gradient=final.gradient,
        converged=final.converged,
        evaluations=evaluations + final.evaluations,
    )


def _constant(features: Tensor, present: Tensor, num_cells: int) -> CellClassifier:
    """A classifier that always predicts the only class."""
    return CellClassifier(
        weight=features.new_zeros(1, features.shape[1]), bias=features.new_zeros(1), present=present, strength=None,
        held_out=(), num_cells=num_cells, gradient=0.0, converged=True, evaluations=0,
    )  # fmt: skip


def _choose_strength(
    x: Tensor, labels: Tensor, is_held_out: Tensor, num_classes: int, strengths: Sequence[float], tolerance: float
) -> tuple[list[tuple[float, float]], LinearFit, int]:
    """The strengths tried with their mIoU over the held-out cells, the best fit to the others, and the evaluations."""
    # some classes may occur in the held-out part only
    known, fit_labels = torch.unique(labels[~is_held_out], return_inverse=True)
    classes = torch.arange(num_classes, device=x.device)[known]
    weights = balanced_weights(fit_labels, len(known))
    problem = LogisticProblem(x[~is_held_out], fit_labels, len(known), class_weights=weights, dtype=x.dtype)
    tried: list[tuple[float, float]] = []
    best: tuple[float, LinearFit] | None = None
    fit, evaluations, worse = None, 0, 0
    for strength in sorted(strengths, reverse=True):
        fit = problem.solve(strength, tolerance=10 * tolerance, start=fit, most_evaluations=300)
        evaluations += fit.evaluations
        predicted = classes[fit.scores(x[is_held_out]).argmax(dim=1)]
        miou = _cell_miou(labels[is_held_out], predicted, num_classes)
        worse = worse + 1 if tried and miou < tried[-1][1] else 0
        tried.append((strength, miou))
        if best is None or miou > best[0]:
            best = miou, fit
        if worse >= _WORSE_IN_A_ROW:
            break
    assert best is not None
    chosen = best[1]
    weight, bias = x.new_zeros(num_classes, x.shape[1]), x.new_zeros(num_classes)
    weight[classes], bias[classes] = chosen.weight, chosen.bias
    start = LinearFit(weight=weight, bias=bias, strength=chosen.strength, gradient=chosen.gradient,
                      converged=chosen.converged, evaluations=chosen.evaluations)  # fmt: skip
    return tried, start, evaluations


def _cell_miou(truth: Tensor, predicted: Tensor, num_classes: int) -> float:
    """Mean IoU over the classes that occur in `truth`, counted in cells."""
    counts = torch.bincount(truth * num_classes + predicted, minlength=num_classes**2).view(num_classes, num_classes)
    both, true = counts.diagonal().double(), counts.sum(dim=1)
    return float((both / (true + counts.sum(dim=0) - both).clamp(min=1))[true > 0].mean())


def _in_order(shown: Sequence[tuple[int, Tensor]], examples: Sequence[int], size: int) -> np.ndarray:
    """Maps (E, S, S) int16 in the order of `examples`."""
    maps = {index: values.numpy().astype(np.int16) for index, values in shown}
    return np.stack([maps[index] for index in examples]) if examples else np.empty((0, size, size), dtype=np.int16)
