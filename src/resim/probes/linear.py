"""A linear probe on cached features: L2-regularised multinomial logistic regression, solved to a stated gradient.

Shapes: N training images, C channels, K classes.

The objective is convex, so its solution depends on nothing but the features, the classes and the strength of the
regularisation, which is chosen on a part of the training images held out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from resim.probes.labels import stratified

STRENGTHS = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)
_WORSE_IN_A_ROW = 2


@dataclass(frozen=True, kw_only=True)
class LinearFit:
    """A linear classifier and how it was found."""

    weight: Tensor
    """(K, C) float64 (float32 where the problem is), for features as they are given to `scores`."""
    bias: Tensor
    """(K,), likewise."""
    strength: float
    """Of the L2 penalty: mean cross-entropy + strength / 2 * |weight|^2."""
    gradient: float
    """Largest entry of the objective's gradient where the solver stopped."""
    converged: bool
    """Whether that is below the tolerance."""
    evaluations: int
    """Of the objective and its gradient."""
    held_out: tuple[tuple[float, float], ...] = ()
    """Strengths that were tried, and their accuracies on the held-out part."""

    def scores(self, features: Tensor) -> Tensor:
        """(M, C) -> (M, K), float64."""
        return features.to(self.weight) @ self.weight.T + self.bias


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    strength: float,
    class_weights: Tensor | None = None,
    tolerance: float = 1e-5,
    most_evaluations: int = 2000,
) -> LinearFit:
    """Minimise mean cross-entropy + strength / 2 * |weight|^2 by L-BFGS in float64; the bias is not penalised.

    The same as scikit-learn's LogisticRegression with C = 1 / (N * strength), for three classes or more; with
    `balanced_weights` as that with `class_weight="balanced"`.

    Args:
        features: (N, C), of any floating dtype; used as they are.
        labels: (N,) int64.
        num_classes: K.
        strength: of the L2 penalty.
        class_weights: (K,) weight of each image's cross-entropy by its class; the mean is weighted. None: all 1.
        tolerance: largest entry of the gradient at which it has converged.
        most_evaluations: of the objective; the fit says whether it has converged by then.
    """
    problem = LogisticProblem(features, labels, num_classes, class_weights=class_weights)
    return problem.solve(strength, tolerance=tolerance, most_evaluations=most_evaluations)


def balanced_weights(labels: Tensor, num_classes: int) -> Tensor:
    """(K,) float64: N / (K * N_k) for a class of N_k of the N labels, so that all classes weigh the same.

    Raises:
        ValueError: a class without a label.
    """
    counts = torch.bincount(labels, minlength=num_classes).double()
    if not (counts > 0).all():
        raise ValueError(f"class {int((counts == 0).nonzero()[0, 0])} has no labels: it cannot be weighed")
    return len(labels) / (num_classes * counts)


class LogisticProblem:
    """Logistic regression on given features, in variables whose curvature is about 1 in every direction.

    The features' covariance has eigenvalues s; one class's share of the Hessian is about s / K + strength, and 1 / K
    for its bias. Dividing by their roots changes the path, not the solution, and takes a fraction of the evaluations.
    """

    def __init__(
        self, features: Tensor, labels: Tensor, num_classes: int, *, class_weights: Tensor | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:  # fmt: skip
        x = features.to(dtype)
        self.mean, self.labels, self.num_classes = x.mean(dim=0), labels.to(x.device), num_classes
        self.class_weights = None if class_weights is None else class_weights.to(x)
        centred = x - self.mean
        values, basis = torch.linalg.eigh((centred.T @ centred / len(x)).double())
        self.values, self.basis = values.clamp(min=0).to(dtype), basis.to(dtype)
        self.rotated = centred @ self.basis

    def solve(
        self, strength: float, *, tolerance: float, most_evaluations: int = 2000, start: LinearFit | None = None
    ) -> LinearFit:
        """As `fit_logistic`; from another strength's solution, or from zeros."""
        scale = (self.values / self.num_classes + strength).clamp(min=1e-12).rsqrt()
        bias_scale = self.num_classes**0.5
        z = self.rotated
        weight, bias = z.new_zeros(self.num_classes, z.shape[1]), z.new_zeros(self.num_classes)
        if start is not None:
            weight = start.weight.to(z) @ self.basis / scale
            bias = (start.bias.to(z) + start.weight.to(z) @ self.mean) / bias_scale
        weight.requires_grad_()
        bias.requires_grad_()
        evaluations = 0

        def objective() -> float:
            nonlocal evaluations
            evaluations += 1
            weight.grad = bias.grad = None
            with torch.enable_grad():
                scaled = weight * scale  # not z * scale, which is as large as the features
                scores = torch.addmm(bias * bias_scale, z, scaled.T)
                loss = F.cross_entropy(scores, self.labels, self.class_weights) + strength / 2 * scaled.square().sum()
                loss.backward()
            return float(loss.detach())

        def gradient() -> float:
            """Largest entry in the variables of the features as they were given."""
            assert weight.grad is not None
            assert bias.grad is not None
            by_bias = bias.grad / bias_scale
            by_weight = weight.grad / scale @ self.basis.T + by_bias[:, None] * self.mean
            return float(torch.cat([by_weight.flatten(), by_bias]).abs().max())

        objective()
        goal, before = tolerance, math.inf
        # a round that does not halve the gradient has come to the end of float64
        while tolerance < gradient() < before / 2 and evaluations < most_evaluations:
            before = gradient()
            left = most_evaluations - evaluations
            solver = torch.optim.LBFGS(
                [weight, bias], max_iter=left, max_eval=left, tolerance_grad=goal, tolerance_change=1e-15,
                history_size=20, line_search_fn="strong_wolfe",
            )  # fmt: skip
            solver.step(objective)
            objective()
            goal /= 10  # the solver judges by its own variables
        found = (weight.detach() * scale) @ self.basis.T
        reached = gradient()
        return LinearFit(
            weight=found, bias=bias.detach() * bias_scale - found @ self.mean, strength=strength, gradient=reached,
            converged=reached <= tolerance, evaluations=evaluations,
        )  # fmt: skip


def fit_linear(
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    strengths: Sequence[float] = STRENGTHS,
    held_out_share: float = 0.2,
    tolerance: float = 1e-5,
    seed: int = 0,
) -> LinearFit:
    """Choose the strength of the regularisation on a held-out part, then fit on all.

    Channels are standardised first by the training images' mean and standard deviation; the classifier that comes back
    takes features as they are. Strengths are tried from the strongest down, each from the solution before it, until
    the held-out accuracy has fallen twice in a row; of equals the strongest is kept.

    Args:
        features: (N, C).
        labels: (N,) int64.
        num_classes: K.
        strengths: to be tried.
        held_out_share: of each class.
        tolerance: as in `fit_logistic`.
        seed: of the held-out part.

    Raises:
        ValueError: no strengths, or no class has two images or more.
    """
    if not strengths:
        raise ValueError("no strength of the regularisation to try")
    mean, std = features.double().mean(dim=0), features.double().std(dim=0, correction=0)
    scale = torch.where(std > 1e-12, 1 / std.clamp(min=1e-12), 0.0)  # a channel that never changes tells nothing
    x = (features.double() - mean) * scale
    out = torch.from_numpy(stratified(labels.cpu().numpy(), held_out_share, seed)).to(x.device)
    if not out.any():
        raise ValueError("no class has two images: nothing can be held out")
    labels = labels.to(x.device)
    tried: list[tuple[float, float]] = []
    best: tuple[float, LinearFit] | None = None
    fit, evaluations, worse = None, 0, 0
    part = LogisticProblem(x[~out], labels[~out], num_classes)
    for strength in sorted(strengths, reverse=True):
        fit = part.solve(strength, tolerance=10 * tolerance, start=fit)  # the choice needs less than the final fit
        evaluations += fit.evaluations
        share = float((fit.scores(x[out]).argmax(dim=1) == labels[out]).double().mean())
        worse = worse + 1 if tried and share < tried[-1][1] else 0
        tried.append((strength, share))
        if best is None or share > best[0]:
            best = share, fit
        if worse >= _WORSE_IN_A_ROW:
            break
    assert best is not None
    chosen = best[1]
    final = LogisticProblem(x, labels, num_classes).solve(chosen.strength, tolerance=tolerance, start=chosen)
    weight = final.weight * scale
    return LinearFit(
        weight=weight, bias=final.bias - weight @ mean, strength=chosen.strength, gradient=final.gradient,
        converged=final.converged, evaluations=evaluations + final.evaluations, held_out=tuple(tried),
    )  # fmt: skip
