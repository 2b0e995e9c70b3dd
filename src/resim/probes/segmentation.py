"""Linear segmentation: one linear classifier on the cells of a frozen map, asked for the class of every pixel.

Shapes: N images of S x S px, a map of C channels and H x W cells, M training cells, K classes.

A classifier is multinomial logistic regression of a cell's majority class on its standardised features, every class
weighing the same: it minimises

    1 / M * sum over cells of M / (K' M_k) * cross-entropy + strength / 2 * |weight|^2

where k is the class of the cell, M_k the number of training cells of that class and K' the number of classes that have
training cells. A class without one is never answered; where all cells of a coarse map have one majority class, that
class is answered everywhere.
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
from resim.probes.segmentation_scores import Predicted, confusions
from resim.probes.unlabelled import Told

STRENGTHS = (1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)
_WORSE_IN_A_ROW = 2
_COPIES = 5  # of its features that a fit holds at a time
_EXACT_VALUES = 2**23  # up to this many the fit runs in float64


@dataclass(frozen=True, kw_only=True)
class CellClassifier:
    """A linear classifier of cells."""

    weight: Tensor
    """(K', C), for features as they are."""
    bias: Tensor
    """(K',)."""
    present: Tensor
    """(K',) int64: the classes with training cells, in whose order the scores are."""
    strength: float | None
    """Of the L2 penalty; None: there is one class, and nothing was fitted."""
    held_out: tuple[tuple[float, float], ...]
    """Strengths that were tried, and their mIoU over cells of the images held out."""
    num_cells: int
    """Training cells."""
    gradient: float
    """Largest entry of the objective's gradient where the solver stopped."""
    converged: bool
    evaluations: int
    """Of the objective and its gradient, over all strengths."""

    def scores(self, maps: Tensor) -> Tensor:
        """(n, C, H, W) -> (n, K', H, W)."""
        return torch.nn.functional.conv2d(maps, self.weight[:, :, None, None].to(maps), self.bias.to(maps))

    def predict(self, maps: Tensor, size: int) -> Tensor:
        """(n, C, H, W) -> (n, size, size) int64 classes: bilinear interpolation of the scores, then the greatest."""
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
    told: Told | None = None,
) -> dict[str, Predicted]:
    """Fit a linear classifier to each map of a network, and ask it for the labels of test images.

    Args:
        train: maps of the training images by level, (N, C, H, W) of any floating dtype.
        train_labels: (N, S, S) integers: classes, or VOID (-1).
        test: maps of the test images.
        test_labels: of the test images.
        num_classes: K.
        levels: of the maps; empty: all of them.
        with_all: whether all maps together, resized to the finest, are a level of their own, "all".
        most_cells: training cells of a level, the same number of each image, chosen at random.
        memory: GiB that a fit may take; a wide map has fewer cells where that demands it.
        strengths: of the L2 penalty, to choose from.
        seed: of the cells, and of the fifth of the training images on which the strength is chosen.
        examples: test images whose predicted maps are kept.
        device: where to compute.
        told: progress.

    Returns:
        By level, per-image confusion matrices: of several networks and seeds they are put together, subtracted and
        bootstrapped by whoever calls this.

    Raises:
        ValueError: no labelled training cell, or fewer than two training images.
    """
    chosen = {level: train[level] for level in levels} if levels else dict(train)
    asked = {level: test[level] for level in chosen}
    results = {}
    for level in level_names(chosen, with_all=with_all):
        if told is not None:
            told(f"linear segmentation, {level}", 0, 0)
        channels, height, width = level_shape(chosen, level)
        most = min(most_cells, int(memory * 2**30 / (4 * _COPIES * channels)))
        cells = sample_cells(train_labels, num_classes, (height, width), most=most, seed=seed)
        features = gather_cells(chosen, level, cells, device)
        classifier = fit_cells(features, cells, strengths=strengths, seed=seed)
        confusion, shown = [], []
        for rows in batches(len(test_labels)):
            predicted = classifier.predict(level_maps(asked, level, rows, device), test_labels.shape[-1]).cpu()
            confusion.append(confusions(test_labels[rows], predicted, num_classes))
            shown += [(i, predicted[i - rows.start]) for i in examples if rows.start <= i < rows.stop]
        results[level] = Predicted(
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
    """Choose the strength on a fifth of the images, held out, then fit to all cells.

    Strengths are tried from the strongest down, each from the solution before it, until the mIoU over the cells held
    out has fallen twice in a row; of equals the strongest is kept. Up to 8 million values the fit runs in float64,
    above that in float32.

    Args:
        features: (M, C).
        cells: M cells.
        strengths: of the L2 penalty, for standardised features.
        seed: of the images held out.
        tolerance: largest entry of the gradient at which a fit has converged.

    Raises:
        ValueError: no cell, one image, or no strengths.
    """
    if not len(cells):
        raise ValueError("the training images have no labelled cell")
    labels = cells.shares.argmax(dim=1)
    present, labels = torch.unique(labels, return_inverse=True)
    if len(present) < 2:
        return _constant(features, present, len(cells))
    images = torch.unique(cells.image)
    if len(images) < 2:
        raise ValueError("one training image: none can be held out to choose the strength of the penalty")
    if not strengths:
        raise ValueError("no strength of the penalty to choose from")
    dtype = torch.float64 if features.numel() <= _EXACT_VALUES else torch.float32
    x, labels = features.to(dtype), labels.to(features.device)
    mean, std = x.mean(dim=0), x.std(dim=0, correction=0)
    scale = torch.where(std > 1e-12 * mean.abs().clamp(min=1e-12), 1 / std.clamp(min=1e-30), 0.0)  # constant: no news
    x = (x - mean).mul_(scale)
    order = np.random.default_rng([12, seed]).permutation(len(images))[: max(1, round(0.2 * len(images)))]
    out = torch.isin(cells.image, images[torch.from_numpy(order)]).to(x.device)
    tried, best, evaluations = _choose(x, labels, out, len(present), strengths, tolerance)
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
    """A classifier that always answers the one class there is."""
    return CellClassifier(
        weight=features.new_zeros(1, features.shape[1]), bias=features.new_zeros(1), present=present, strength=None,
        held_out=(), num_cells=num_cells, gradient=0.0, converged=True, evaluations=0,
    )  # fmt: skip


def _choose(
    x: Tensor, labels: Tensor, out: Tensor, num_classes: int, strengths: Sequence[float], tolerance: float
) -> tuple[list[tuple[float, float]], LinearFit, int]:
    """Every strength with its mIoU over the cells held out, the best fit to the others, and the evaluations."""
    known, inside = torch.unique(labels[~out], return_inverse=True)  # a class may be in the part held out alone
    place = torch.arange(num_classes, device=x.device)[known]
    weights = balanced_weights(inside, len(known))
    part = LogisticProblem(x[~out], inside, len(known), class_weights=weights, dtype=x.dtype)
    tried: list[tuple[float, float]] = []
    best: tuple[float, LinearFit] | None = None
    fit, evaluations, worse = None, 0, 0
    for strength in sorted(strengths, reverse=True):
        fit = part.solve(strength, tolerance=10 * tolerance, start=fit, most_evaluations=300)
        evaluations += fit.evaluations
        miou = _cell_miou(labels[out], place[fit.scores(x[out]).argmax(dim=1)], num_classes)
        worse = worse + 1 if tried and miou < tried[-1][1] else 0
        tried.append((strength, miou))
        if best is None or miou > best[0]:
            best = miou, fit
        if worse >= _WORSE_IN_A_ROW:
            break
    assert best is not None
    chosen = best[1]
    weight, bias = x.new_zeros(num_classes, x.shape[1]), x.new_zeros(num_classes)
    weight[place], bias[place] = chosen.weight, chosen.bias
    whole = LinearFit(weight=weight, bias=bias, strength=chosen.strength, gradient=chosen.gradient,
                      converged=chosen.converged, evaluations=chosen.evaluations)  # fmt: skip
    return tried, whole, evaluations


def _cell_miou(truth: Tensor, predicted: Tensor, num_classes: int) -> float:
    """Mean IoU over the classes that occur in `truth`, counted in cells."""
    counts = torch.bincount(truth * num_classes + predicted, minlength=num_classes**2).view(num_classes, num_classes)
    both, true = counts.diagonal().double(), counts.sum(dim=1)
    return float((both / (true + counts.sum(dim=0) - both).clamp(min=1))[true > 0].mean())


def _in_order(shown: Sequence[tuple[int, Tensor]], examples: Sequence[int], size: int) -> np.ndarray:
    """(E, S, S) int16 in the order in which they were asked for."""
    maps = {index: values.numpy().astype(np.int16) for index, values in shown}
    return np.stack([maps[index] for index in examples]) if examples else np.empty((0, size, size), dtype=np.int16)
