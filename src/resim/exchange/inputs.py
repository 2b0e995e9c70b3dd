"""What a foreign network takes: order, mean and deviation of its channels, and where its strides are.

Ours takes RGB images normalised by ImageNet's mean and deviation. Another linear form of input folds into the first
convolution: `W'[:, c] = W[:, c'] * 255 std_c / std'_c'`. That is exact, borders included, where the means agree, since
zero padding then stands for the same colour; another mean goes into the first norm, and the border differs.

Sources: Detectron2's and MMDetection's configs, which state their inputs in pixel values from 0 to 255.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from resim.views.photometric import MEAN, STD

CAFFE_MEAN, ONES, BGR_STD = (103.53, 116.28, 123.675), (1.0, 1.0, 1.0), (57.375, 57.12, 58.395)
"""Detectron2's: blue, green, red, of pixel values; the deviation of MSRA's ResNets and that of its others."""

_SAME = 0.02  # pixel values: means are written with two or three digits
_LARGEST_USUAL, _LEAST_USUAL = 8.0, 0.03


@dataclass(frozen=True, kw_only=True)
class InputForm:
    """What a network takes."""

    order: Literal["RGB", "BGR"]
    mean: tuple[float, ...]
    """In this order, of pixel values from 0 to 255."""
    std: tuple[float, ...]
    stride_in_1x1: bool = False
    """Whether a bottleneck's stride is in its first convolution, as Caffe's ResNets have it."""
    evidence: str = ""
    """Where this is stated, for people."""

    @property
    def is_ours(self) -> bool:
        """Whether the weights can stay as they are."""
        expected = (*(255 * value for value in MEAN), *(255 * value for value in STD))
        same = all(abs(a - b) < _SAME for a, b in zip((*self.mean, *self.std), expected, strict=True))
        return self.order == "RGB" and same

    @property
    def is_exact(self) -> bool:
        """Whether folding it is exact up to the border."""
        return all(abs(255 * MEAN[ours] - self.mean[theirs]) < _SAME for ours, theirs in self.channels())

    def channels(self) -> list[tuple[int, int]]:
        """Each channel of ours and its number there."""
        return [(number, number if self.order == "RGB" else 2 - number) for number in range(3)]

    def conversion(self, backbone: str) -> str:
        """What is done about it, and where it is stated, for people.

        Args:
            backbone: as which the network is read.
        """
        parts = []
        if not self.is_ours:
            edge = "" if self.is_exact else " but for the border, where padded zeros stand for another colour"
            parts.append(
                f"its input is {self}: folded into the first convolution, so that features of RGB images normalised by "
                f"ImageNet's mean and deviation are the same{edge}"
            )
        if self.stride_in_1x1:
            parts.append(f"its strides are in the 1 x 1 convolutions: read as {backbone}")
        return f"{'; '.join(parts)} ({self.evidence})"

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"{self.order} with mean {mean} and deviation {std}"


def fold_input(tensors: Mapping[str, Tensor], form: InputForm) -> dict[str, Tensor]:
    """Weights that give for our input what these give for theirs.

    Args:
        tensors: under our names; changed are `backbone.conv1.weight` and, where the means differ,
            `backbone.bn1.running_mean`.
        form: what they take.
    """
    weight = tensors["backbone.conv1.weight"]
    folded, shift = torch.zeros_like(weight, dtype=torch.float64), torch.zeros(len(weight), dtype=torch.float64)
    for ours, theirs in form.channels():
        kernel = weight[:, theirs].double()
        folded[:, ours] = kernel * (255 * STD[ours] / form.std[theirs])
        shift += kernel.sum(dim=(1, 2)) * ((255 * MEAN[ours] - form.mean[theirs]) / form.std[theirs])
    out = dict(tensors) | {"backbone.conv1.weight": folded.to(weight.dtype)}
    if not form.is_exact:
        mean = tensors["backbone.bn1.running_mean"]
        out["backbone.bn1.running_mean"] = (mean.double() - shift).to(mean.dtype)
    return out


def seems_unnormalised(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the first convolution and its norm are those of pixel values from 0 to 255, by their magnitudes.

    A norm's running variance is the variance of the convolution's output. What it is for normalised photographs follows
    from the weights and the correlation of nearby pixels; for pixel values it is some 3,300 times as much. Where a
    frozen norm keeps no statistics, its output, usually between 0.05 and 3, would be 57 times too small.
    """
    weight = tensors.get("backbone.conv1.weight")
    variance, scale = (tensors.get(f"backbone.bn1.{leaf}") for leaf in ("running_var", "weight"))
    if weight is None or variance is None or scale is None or weight.dim() != 4 or weight.shape[1] != 3:
        return False
    if not len(weight) == len(variance) == len(scale):
        return False
    expected = (weight.double().flatten(1) @ _photographs(weight.shape[2], weight.shape[3])).mul(
        weight.double().flatten(1)
    )
    deviation = expected.sum(dim=1).clamp(min=0).sqrt()
    alive = deviation > 1e-9
    if not alive.any():
        return False
    deviation, variance, scale = deviation[alive], variance.double()[alive].clamp(min=0), scale.double()[alive].abs()
    if variance.max() - variance.min() > 1e-3:
        return bool((variance.sqrt() / deviation).median() > _LARGEST_USUAL)
    output = deviation * scale / variance.clamp(min=1e-12).sqrt()
    return bool(output.quantile(0.9) < _LEAST_USUAL)


def _photographs(height: int, width: int) -> Tensor:
    """Covariance of the pixels of a patch of normalised photographs, (3 H W, 3 H W): near ones are much alike."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack((rows.flatten(), columns.flatten()), dim=1).double()
    near = torch.exp(-torch.cdist(places, places) / 20)
    return torch.kron(torch.full((3, 3), 0.9).double().fill_diagonal_(1.0), near)


def form_of_numbers(mean: list[float], std: list[float], order: str | None, evidence: str) -> InputForm | None:
    """The input form of a mean and a deviation, whose order of channels follows from ImageNet's mean where it is not
    stated; None for what is no mean and deviation of three channels."""
    if len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in std):
        return None
    if order not in ("RGB", "BGR"):
        order = "BGR" if mean[0] < mean[2] else "RGB"
    return InputForm(order="BGR" if order == "BGR" else "RGB", mean=tuple(mean), std=tuple(std), evidence=evidence)


def numbers_in(text: str) -> list[float]:
    """The numbers of a list as it is written, `[103.53, 116.28, 123.675]` or one a line after a dash."""
    return [float(number) for number in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", text)]
