"""The layers of a saved module against those of the network that its weights are read as.

A module saved as a whole has what its state_dict lacks: strides, dilation, epsilon, activations, layers without
weights. TorchScript's layers have their classes only.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from resim.errors import UserError
from resim.exchange.files.pickle_values import PassedOver
from resim.exchange.networks.architecture import shorten
from resim.exchange.networks.recognise import Network
from resim.model.backbone import CAFFE, torchvision_resnet

_GEOMETRY = ("kernel_size", "stride", "padding", "dilation")
_SIZES = (*_GEOMETRY, "ceil_mode")
_EPSILON = 1e-5
_POOLING = {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 1, "ceil_mode": False}
_WITHOUT_EFFECT = frozenset(
    "Identity Dropout Dropout2d DropPath DropBlock2d StochasticDepth FloatFunctional Sequential".split()  # noqa: SIM905
)
_FUNCTIONS = re.compile(r"\.(activation|pooling)\.|Pool|Blur|Upsample|ReLU|GELU")


@dataclass(frozen=True)
class _Difference:
    name: str
    """Of the layer, as ours."""
    text: str
    kind: Literal["geometry", "epsilon", "other"]
    """Geometry: the weights are a plain ResNet's, and only the sizes of maps or receptive fields are others."""
    value: object = None


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """What the layers of a saved module state."""

    stride_in_1x1: bool = False
    """Whether a bottleneck's stride is in its first convolution."""
    epsilons: Mapping[str, float] = field(default_factory=dict)
    """Of norms, by their names as ours, where it is another than ours."""
    notes: tuple[str, ...] = ()

    def warnings(self, backbone: str, is_stated: bool) -> list[str]:
        """Sentences on conversions, and the notes.

        Args:
            backbone: the name under which the network is read.
            is_stated: whether the place of its strides is stated already.
        """
        conversions = []
        if self.stride_in_1x1 and not is_stated:
            conversions = [f"its strides are in the 1 x 1 convolutions, by its layers: read as {backbone}"]
        if self.epsilons:
            values = ", ".join(f"{value:g}" for value in sorted({*self.epsilons.values()}))
            conversions += [f"its norms have an epsilon of {values}: folded into their scales, features are the same"]
        return [*conversions, *self.notes]


def compare_layers(path: Path, network: Network, backbone: str) -> LayerReport:
    """What the layers of a saved module state; nothing for a state_dict.

    Args:
        path: the file, for the message.
        network: in the file.
        backbone: the name under which it is read.

    Raises:
        UserError: layers that a plain ResNet does not have, or of other settings.
    """
    if not network.state.layers:
        return LayerReport()
    expected = _settings_of(backbone)
    different = list(_differences(network, expected))
    geometry = [each for each in different if each.kind == "geometry"]
    stride_in_1x1 = False
    if geometry and any(".conv3" in name for name in expected):
        caffe = list(_differences(network, _settings_of(f"{backbone}{CAFFE}")))
        if not any(each.kind == "geometry" for each in caffe):
            geometry, stride_in_1x1 = [], True
    others = [each.text for each in different if each.kind == "other"]
    if others:
        raise UserError(
            f"{path}: is no plain {backbone}, by its layers: {shorten(others)}; another network is not read"
        )
    notes = []
    if geometry:
        texts = shorten([each.text for each in geometry])
        notes = [f"it is read as a plain {backbone}, and its maps will differ: {texts}"]
    epsilons = {each.name: each.value for each in different if isinstance(each.value, (int, float))}
    return LayerReport(stride_in_1x1=stride_in_1x1, epsilons=epsilons, notes=tuple(notes))


def fold_epsilons(tensors: Mapping[str, Tensor], epsilons: Mapping[str, float]) -> dict[str, Tensor]:
    """Weights whose norms normalise with our epsilon as these do with theirs: `w' = w sqrt((v + ours) / (v + theirs))`.

    Args:
        tensors: under our names.
        epsilons: theirs, by the norms' names, such as `layer1.0.bn1`.
    """
    folded = dict(tensors)
    for name, theirs in epsilons.items():
        weight, variance = (tensors[f"backbone.{name}.{leaf}"] for leaf in ("weight", "running_var"))
        factor = ((variance.double() + _EPSILON) / (variance.double() + theirs).clamp(min=1e-30)).sqrt()
        folded[f"backbone.{name}.weight"] = (weight.double() * factor).to(weight.dtype)
    return folded


@functools.lru_cache(maxsize=8)
def _settings_of(backbone: str) -> dict[str, dict[str, Any]]:
    """The settings of the convolutions and norms of one of our ResNets, by name."""
    with torch.device("meta"):
        network = torchvision_resnet(backbone)
    settings: dict[str, dict[str, Any]] = {}
    for name, layer in network.named_modules():
        if isinstance(layer, torch.nn.Conv2d):
            settings[name] = {key: getattr(layer, key) for key in (*_GEOMETRY, "groups", "padding_mode")}
        elif isinstance(layer, torch.nn.BatchNorm2d):
            settings[name] = {"eps": layer.eps}
    return settings


def _differences(network: Network, expected: Mapping[str, Mapping[str, Any]]) -> Iterator[_Difference]:
    layers = {
        name.removeprefix(network.prefix): layer
        for name, layer in network.state.layers.items()
        if name.startswith(network.prefix) and name != network.prefix.removesuffix(".")
    }
    parents = {name.rpartition(".")[0] for name in layers}
    in_stem = True
    for name, layer in layers.items():
        ours = (network.scheme.to_ours(f"{name}.weight") or "").removeprefix("backbone.").removesuffix(".weight")
        in_stem &= not ours.startswith("layer")
        if ours in expected:
            yield from _other_settings(ours, layer, expected[ours])
        elif name not in parents and ours.startswith("layer"):
            yield from _other_kind(name, layer, allowed=("ReLU",))
        elif name not in parents and "." not in name and in_stem and _is_function(name, layer):
            yield from _other_kind(name, layer, allowed=("ReLU", "MaxPool2d"))


def _is_function(name: str, layer: PassedOver) -> bool:
    return bool(_FUNCTIONS.search(layer.kind)) or "pool" in name


def _other_kind(name: str, layer: PassedOver, allowed: tuple[str, ...]) -> Iterator[_Difference]:
    kind = layer.kind.rpartition(".")[2]
    if kind == "MaxPool2d" and kind in allowed:
        yield from _other_settings(name, layer, _POOLING)
    elif kind == "Identity" and "MaxPool2d" in allowed and "pool" in name:
        yield _Difference(name, f"{name} is Identity", "geometry")
    elif kind not in allowed and kind not in _WITHOUT_EFFECT:
        yield _Difference(name, f"{name} is {kind}", "other")


def _other_settings(name: str, layer: PassedOver, expected: Mapping[str, Any]) -> Iterator[_Difference]:
    entries = layer.entries()
    for key, value in expected.items():
        actual = _plain(entries.get(key), isinstance(value, tuple))
        if actual is None or actual == value:
            continue
        if key == "eps" and isinstance(actual, (int, float)) and 0 <= actual < 1:
            yield _Difference(name, "", "epsilon", actual)
        else:
            kind = "geometry" if key in _SIZES else "other"
            yield _Difference(name, f"{name} has {key.replace('_', ' ')} {actual} for {value}", kind)


def _plain(value: object, as_pair: bool) -> int | float | str | tuple[int, ...] | None:
    """A setting of a layer, as one number or as a pair; None for any other value."""
    if isinstance(value, tuple) and 0 < len(value) <= 3 and all(type(part) is int for part in value):
        is_single = not as_pair and len({*value}) == 1
        return value[0] if is_single else value
    if not isinstance(value, (int, float, str)) or (isinstance(value, int) and abs(value) >= 1 << 63):
        return None
    return (value, value) if as_pair and type(value) is int else value
