"""Norms that are added to an FPN, or folded into its convolutions, with the same features in evaluation."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_EPS = 1e-5  # of BatchNorm in our FPN, torchvision's and Detectron2's


def with_norms(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add a BatchNorm after each FPN convolution with a bias.

    The bias becomes the norm's shift; its scale is 1, its running mean 0 and its running variance 1 - eps, so that it
    divides by 1. (The published conversion drops the bias.) Other entries do not change.
    """
    result: dict[str, Tensor] = {}
    for name, value in tensors.items():
        conv = re.fullmatch(r"(fpn\.(?:lateral|output)\d)\.(weight|bias)", name)
        if conv is None:
            result[name] = value
        elif conv[2] == "weight":
            result[f"{conv[1]}.0.weight"] = value
        else:
            result |= {
                f"{conv[1]}.1.weight": torch.ones_like(value),
                f"{conv[1]}.1.bias": value,
                f"{conv[1]}.1.running_mean": torch.zeros_like(value),
                f"{conv[1]}.1.running_var": torch.full_like(value, 1 - _EPS),
                f"{conv[1]}.1.num_batches_tracked": torch.zeros((), dtype=torch.int64),
            }
    return result


def without_norms(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold the running statistics, scale and shift of each BatchNorm of an FPN into its convolution, which gets a bias.

    Other entries do not change.
    """
    result: dict[str, Tensor] = {}
    for name, value in tensors.items():
        place = re.fullmatch(r"(fpn\.(?:lateral|output)\d)\.([01])\.(\w+)", name)
        if place is None:
            result[name] = value
        elif place[2] == "0":
            scale, shift, mean, variance = (
                tensors[f"{place[1]}.1.{leaf}"].double() for leaf in ("weight", "bias", "running_mean", "running_var")
            )
            gain = scale / torch.sqrt(variance + _EPS)
            result[f"{place[1]}.weight"] = (value.double() * gain.view(-1, 1, 1, 1)).to(value.dtype)
            result[f"{place[1]}.bias"] = (shift - mean * gain).to(value.dtype)
    return result
