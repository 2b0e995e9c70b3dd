"""The input of a foreign network: order, mean and deviation of its channels, and the place of its strides.

Our networks take RGB images normalised by ImageNet's mean and deviation. Another linear form of input folds into the
first convolution: `W'[:, c] = W[:, c'] * 255 std_c / std'_c'`. This is exact, borders included, where the means agree,
because zero padding is then the same colour; another mean is folded into the first norm, and the border differs.

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
"""Detectron2's mean, in the order blue, green, red, and the deviations of MSRA's ResNets and of its others."""

_SAME = 0.02  # pixel values: configs state means with two or three digits
_MAX_USUAL_RATIO, _MIN_USUAL_OUTPUT = 8.0, 0.03


@dataclass(frozen=True, kw_only=True)
class InputForm:
    """The input that a network takes, and the place of its strides."""

    order: Literal["RGB", "BGR"]
    mean: tuple[float, ...]
    """Of pixel values from 0 to 255, in the order of the channels."""
    std: tuple[float, ...]
    stride_in_1x1: bool = False
    """Whether a bottleneck's stride is in its first convolution, as in Caffe's ResNets."""
    evidence: str = ""
    """The evidence, for messages."""

    @property
    def is_ours(self) -> bool:
        """Whether the weights need no folding."""
        expected = (*(255 * value for value in MEAN), *(255 * value for value in STD))
        is_equal = all(abs(a - b) < _SAME for a, b in zip((*self.mean, *self.std), expected, strict=True))
        return self.order == "RGB" and is_equal

    @property
    def is_exact(self) -> bool:
        """Whether folding is exact at the border too."""
        return all(abs(255 * MEAN[ours] - self.mean[theirs]) < _SAME for ours, theirs in self.channels())

    def channels(self) -> list[tuple[int, int]]:
        """The index of each of our channels, and that of the same colour in this order."""
        return [(number, number if self.order == "RGB" else 2 - number) for number in range(3)]

    def conversion(self, backbone: str) -> str:
        """A sentence on the conversion of the weights and its evidence.

        Args:
            backbone: the name under which the network is read.
        """
        parts = []
        if not self.is_ours:
            edge = "" if self.is_exact else " except at the border, where padded zeros are another colour"
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
    """Weights that compute for our input the features that these compute for theirs.

    Args:
        tensors: under our names; `backbone.conv1.weight` changes and, where the means differ,
            `backbone.bn1.running_mean`.
        form: their input.
    """
    weight = tensors["backbone.conv1.weight"]
    folded, shift = torch.zeros_like(weight, dtype=torch.float64), torch.zeros(len(weight), dtype=torch.float64)
    for ours, theirs in form.channels():
        kernel = weight[:, theirs].double()
        folded[:, ours] = kernel * (255 * STD[ours] / form.std[theirs])
        shift += kernel.sum(dim=(1, 2)) * ((255 * MEAN[ours] - form.mean[theirs]) / form.std[theirs])
    result = dict(tensors) | {"backbone.conv1.weight": folded.to(weight.dtype)}
    if not form.is_exact:
        mean = tensors["backbone.bn1.running_mean"]
        result["backbone.bn1.running_mean"] = (mean.double() - shift).to(mean.dtype)
    return result


def seems_unnormalised(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the first convolution and its norm are those of pixel values from 0 to 255, by their magnitudes.

    A norm's running variance is the variance of the convolution's output. For normalised photographs it is estimated
    from the weights and the correlation of nearby pixels; for pixel values it is about 3,300 times as large. Where a
    frozen norm has no statistics, its output, usually between 0.05 and 3, would be 57 times too small.
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
    used = deviation > 1e-9
    if not used.any():
        return False
    deviation, variance, scale = deviation[used], variance.double()[used].clamp(min=0), scale.double()[used].abs()
    if variance.max() - variance.min() > 1e-3:
        return bool((variance.sqrt() / deviation).median() > _MAX_USUAL_RATIO)
    output = deviation * scale / variance.clamp(min=1e-12).sqrt()
    return bool(output.quantile(0.9) < _MIN_USUAL_OUTPUT)


def _photographs(height: int, width: int) -> Tensor:
    """Covariance of the pixels of a patch of normalised photographs, (3 H W, 3 H W); it decays with the distance."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack((rows.flatten(), columns.flatten()), dim=1).double()
    correlation = torch.exp(-torch.cdist(places, places) / 20)
    return torch.kron(torch.full((3, 3), 0.9).double().fill_diagonal_(1.0), correlation)


def form_of_numbers(mean: list[float], std: list[float], order: str | None, evidence: str) -> InputForm | None:
    """The input form of a mean and a deviation; None if they are not those of three channels.

    Where the order of the channels is not stated it is inferred from ImageNet's mean.
    """
    if len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in std):
        return None
    if order not in ("RGB", "BGR"):
        order = "BGR" if mean[0] < mean[2] else "RGB"
    return InputForm(order="BGR" if order == "BGR" else "RGB", mean=tuple(mean), std=tuple(std), evidence=evidence)


def numbers_in(text: str) -> list[float]:
    """The numbers in the text of a list, `[103.53, 116.28, 123.675]` or one per line after a dash."""
    return [float(number) for number in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", text)]
