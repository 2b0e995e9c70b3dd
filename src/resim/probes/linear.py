"""A linear probe on cached features: L2-regularised multinomial logistic regression, solved to a given gradient.

Shapes: N training images, C channels, K classes.

The objective is convex, so its solution depends on the features, the classes and the strength of the regularisation
only. The strength is chosen on a held-out part of the training images.
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
    """A linear classifier, with the state of the solver."""

    weight: Tensor
    """(K, C), in the dtype of the problem, for features that are not standardised."""
    bias: Tensor
    """(K,)."""
    strength: float
    """Of the L2 penalty: mean cross-entropy + strength / 2 * |weight|^2."""
    gradient: float
    """Largest entry of the gradient of the objective at the solution."""
    converged: bool
    """Whether `gradient` is at most the tolerance."""
    evaluations: int
    """Number of evaluations of the objective and its gradient."""
    held_out: tuple[tuple[float, float], ...] = ()
    """The strengths tried, with their accuracies on the held-out part."""

    def scores(self, features: Tensor) -> Tensor:
        """Class scores (M, K) of features (M, C), in the dtype of `weight`."""
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

    For three classes or more this equals scikit-learn's LogisticRegression with C = 1 / (N * strength); with
    `balanced_weights`, also with `class_weight="balanced"`.

    Args:
        features: (N, C), of any floating dtype; they are not standardised.
        labels: (N,) int64.
        num_classes: K.
        strength: of the L2 penalty.
        class_weights: (K,) weight of the cross-entropy of each class, in a weighted mean; None: all 1.
        tolerance: largest entry of the gradient at convergence.
        most_evaluations: maximum number of evaluations; `LinearFit.converged` says whether they suffice.
    """
    problem = LogisticProblem(features, labels, num_classes, class_weights=class_weights)
    return problem.solve(strength, tolerance=tolerance, most_evaluations=most_evaluations)


def balanced_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Weights N / (K * N_k) of classes with N_k of the N labels, so all classes have the same weight: (K,) float64.

    Raises:
        ValueError: a class has no label.
    """
    counts = torch.bincount(labels, minlength=num_classes).double()
    if not (counts > 0).all():
        raise ValueError(f"class {int((counts == 0).nonzero()[0, 0])} has no labels: its weight is not defined")
    return len(labels) / (num_classes * counts)


class LogisticProblem:
    """Logistic regression, preconditioned to a curvature of about 1 in every direction.

    If the covariance of the features has eigenvalues s, the block of the Hessian of one class has eigenvalues of about
    s / K + strength, and 1 / K for the bias. Dividing by their square roots does not change the solution and takes far
    fewer evaluations.
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
        """Solve the problem like `fit_logistic`, from the solution `start` of another strength or from zeros."""
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
                scaled = weight * scale  # scaling the weights needs less memory than scaling the features
                scores = torch.addmm(bias * bias_scale, z, scaled.T)
                loss = F.cross_entropy(scores, self.labels, self.class_weights) + strength / 2 * scaled.square().sum()
                loss.backward()
            return float(loss.detach())

        def gradient() -> float:
            """Largest entry of the gradient with respect to the weights of the original features."""
            assert weight.grad is not None
            assert bias.grad is not None
            by_bias = bias.grad / bias_scale
            by_weight = weight.grad / scale @ self.basis.T + by_bias[:, None] * self.mean
            return float(torch.cat([by_weight.flatten(), by_bias]).abs().max())

        objective()
        goal, before = tolerance, math.inf
        # a round that does not halve the gradient has reached the precision of float64
        while tolerance < gradient() < before / 2 and evaluations < most_evaluations:
            before = gradient()
            remaining = most_evaluations - evaluations
            solver = torch.optim.LBFGS(
                [weight, bias], max_iter=remaining, max_eval=remaining, tolerance_grad=goal, tolerance_change=1e-15,
                history_size=20, line_search_fn="strong_wolfe",
            )  # fmt: skip
            solver.step(objective)
            objective()
            goal /= 10  # the solver's tolerance refers to the preconditioned variables
        solution = (weight.detach() * scale) @ self.basis.T
        final = gradient()
        return LinearFit(
            weight=solution, bias=bias.detach() * bias_scale - solution @ self.mean, strength=strength, gradient=final,
            converged=final <= tolerance, evaluations=evaluations,
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
    """Choose the strength of the regularisation on a held-out part, then fit all images.

    Channels are standardised by the mean and the standard deviation of the training images; the returned classifier
    takes features that are not standardised. Strengths are tried in descending order, each from the previous solution,
    until the held-out accuracy has fallen twice in a row; of equals the strongest is chosen.

    Args:
        features: (N, C).
        labels: (N,) int64.
        num_classes: K.
        strengths: to choose from.
        held_out_share: fraction of each class.
        tolerance: as in `fit_logistic`.
        seed: of the held-out part.

    Raises:
        ValueError: there are no strengths, or no class has two images.
    """
    if not strengths:
        raise ValueError("no strength of the regularisation to try")
    mean, std = features.double().mean(dim=0), features.double().std(dim=0, correction=0)
    scale = torch.where(std > 1e-12, 1 / std.clamp(min=1e-12), 0.0)  # constant channels carry no information
    x = (features.double() - mean) * scale
    is_held_out = torch.from_numpy(stratified(labels.cpu().numpy(), held_out_share, seed)).to(x.device)
    if not is_held_out.any():
        raise ValueError("no class has two images: nothing can be held out")
    labels = labels.to(x.device)
    tried: list[tuple[float, float]] = []
    best: tuple[float, LinearFit] | None = None
    fit, evaluations, worse = None, 0, 0
    problem = LogisticProblem(x[~is_held_out], labels[~is_held_out], num_classes)
    for strength in sorted(strengths, reverse=True):
        # the choice needs less accuracy than the final fit
        fit = problem.solve(strength, tolerance=10 * tolerance, start=fit)
        evaluations += fit.evaluations
        accuracy = float((fit.scores(x[is_held_out]).argmax(dim=1) == labels[is_held_out]).double().mean())
        worse = worse + 1 if tried and accuracy < tried[-1][1] else 0
        tried.append((strength, accuracy))
        if best is None or accuracy > best[0]:
            best = accuracy, fit
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
