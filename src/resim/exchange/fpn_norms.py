"""An FPN with norms and one without, made from each other so that features in evaluation stay the same."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_EPS = 1e-5  # of BatchNorm in our FPN, torchvision's and Detectron2's


def with_norms(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights whose FPN convolutions have a bias, as convolutions followed by a BatchNorm.

    The bias becomes the norm's shift; its scale is 1, its running mean 0 and its running variance 1 - eps, so that it
    divides by 1. (The published route drops the bias.) Everything else is left as it is.
    """
    out: dict[str, Tensor] = {}
    for name, value in tensors.items():
        conv = re.fullmatch(r"(fpn\.(?:lateral|output)\d)\.(weight|bias)", name)
        if conv is None:
            out[name] = value
        elif conv[2] == "weight":
            out[f"{conv[1]}.0.weight"] = value
        else:
            out |= {
                f"{conv[1]}.1.weight": torch.ones_like(value),
                f"{conv[1]}.1.bias": value,
                f"{conv[1]}.1.running_mean": torch.zeros_like(value),
                f"{conv[1]}.1.running_var": torch.full_like(value, 1 - _EPS),
                f"{conv[1]}.1.num_batches_tracked": torch.zeros((), dtype=torch.int64),
            }
    return out


def without_norms(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights whose FPN convolutions are followed by a BatchNorm, as convolutions with a bias.

    Running statistics, scale and shift are folded into the convolution. Everything else is left as it is.
    """
    out: dict[str, Tensor] = {}
    for name, value in tensors.items():
        place = re.fullmatch(r"(fpn\.(?:lateral|output)\d)\.([01])\.(\w+)", name)
        if place is None:
            out[name] = value
        elif place[2] == "0":
            scale, shift, mean, variance = (
                tensors[f"{place[1]}.1.{leaf}"].double() for leaf in ("weight", "bias", "running_mean", "running_var")
            )
            gain = scale / torch.sqrt(variance + _EPS)
            out[f"{place[1]}.weight"] = (value.double() * gain.view(-1, 1, 1, 1)).to(value.dtype)
            out[f"{place[1]}.bias"] = (shift - mean * gain).to(value.dtype)
    return out
