"""Names of the same network's parts in other programs, and ours: the only translation, in both directions.

Ours are those of `resim.model.encoder.Encoder`: `backbone.layer1.0.conv1.weight` (torchvision's below `backbone.`),
`head.0.weight`, `fpn.lateral5.weight`, or `fpn.lateral5.0.weight` and `fpn.lateral5.1.bias` where the FPN has norms;
in a `ReSim` they are below `query.` and `key.`. A `Scheme` translates a ResNet's names into ours. The names of an FPN
depend on its other entries and are translated in `networks/pyramids.py`.

An entry of the ResNet's own blocks gets a name below `backbone.` even if a plain ResNet has no such entry (a squeeze,
an offset, a bias), so that the reader can refuse the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

PUBLISHED_QUERY, PUBLISHED_KEY, PUBLISHED_HEAD = "encoder_q.", "encoder_k.", "fc."
PUBLISHED_QUEUE = {"queue": "queue", "queue_ptr": "queue_position"}
"""Names of the published ReSim and MoCo checkpoints; the queue's to those of a `ReSim`."""

_STAGE_TO_RES = {"layer1": "res2", "layer2": "res3", "layer3": "res4", "layer4": "res5"}
_FPN = re.compile(r"fpn\.(lateral|output)(\d)\.(?:([01])\.)?(\w+)")
_PADDLE = {"_mean": "running_mean", "_variance": "running_var"}
_COUNTERS = ("total_ops", "total_params")  # which profilers put into modules
_BLOBS = {
    "w": "conv{}.weight", "bn_s": "bn{}.weight", "bn_b": "bn{}.bias", "bn_gamma": "bn{}.weight", "bn_beta": "bn{}.bias",
    "bn_running_mean": "bn{}.running_mean", "bn_running_var": "bn{}.running_var",
}  # fmt: skip


# -- from other programs


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A way of naming a ResNet's parts."""

    name: str
    anchor: re.Pattern[str]
    """The name of the first convolution of the first block; the group `prefix` is the part before the ResNet."""
    last: str
    """The part after the prefix that the last stage of a complete ResNet has in its names."""
    to_ours: Callable[[str], str | None]
    """Our name for a name without its prefix; None for an entry that is no part of the ResNet."""


def from_torchvision(name: str) -> str | None:
    """`layer1.0.conv1.weight` -> `backbone.layer1.0.conv1.weight`; None for the classifier.

    PaddlePaddle's ResNets have the same names, except `bn1._mean` and `bn1._variance`.
    """
    if not re.match(r"(conv1|bn1|layer[1-4]\.\d+)\.", name):
        return None
    parent, _, leaf = name.rpartition(".")
    return f"backbone.{parent}.{_PADDLE.get(leaf, leaf)}"


def from_detectron2(name: str) -> str | None:
    """`res2.0.conv1.norm.bias` -> `backbone.layer1.0.bn1.bias`; None for heads and the FPN."""
    stem = re.fullmatch(r"stem\.conv1\.(norm\.)?(\w+)", name)
    if stem:
        return f"backbone.{'bn1' if stem[1] else 'conv1'}.{stem[2]}"
    block = re.fullmatch(r"res([2-5])\.(\d+)\.(.+)", name)
    if block is None:
        return f"backbone.{name}" if re.match(r"stem\.conv\d", name) else None
    part = re.sub(r"^conv(\d)\.norm\.", r"bn\1.", block[3])
    part = re.sub(r"^shortcut\.norm\.", "downsample.1.", part)
    return f"backbone.layer{int(block[1]) - 1}.{block[2]}.{re.sub(r'^shortcut[.]', 'downsample.0.', part)}"


def from_transformers(name: str) -> str | None:
    """The names of `ResNetModel` in Hugging Face's `transformers`."""
    leaf = {"convolution": "conv", "normalization": "bn"}
    stem = re.fullmatch(r"embedder\.embedder\.(convolution|normalization)\.(\w+)", name)
    if stem:
        return f"backbone.{leaf[stem[1]]}1.{stem[2]}"
    block = re.fullmatch(r"encoder\.stages\.(\d)\.layers\.(\d+)\.(.+)", name)
    if block is None:
        return None
    part = re.sub(r"^layer\.(\d)\.(convolution|normalization)\.", lambda m: f"{leaf[m[2]]}{int(m[1]) + 1}.", block[3])
    part = re.sub(r"^shortcut\.convolution\.", "downsample.0.", part)
    part = re.sub(r"^shortcut\.normalization\.", "downsample.1.", part)
    return f"backbone.layer{int(block[1]) + 1}.{block[2]}.{part}"


def from_caffe2(name: str) -> str | None:
    """Blobs of Caffe2 and Detectron 1, whose norms are scales and shifts, and those of Detectron2 with statistics."""
    block = re.fullmatch(r"(?:(?:res_)?conv1|res([2-5])_(\d+)_branch(1|2[abc]))_(\w+)", name)
    if block is None or block[4] not in _BLOBS:
        return None
    leaf = _BLOBS[block[4]]
    if block[1] is None:
        return f"backbone.{leaf.format(1)}"
    if block[3] == "1":
        leaf = leaf.replace("conv{}", "downsample.0").replace("bn{}", "downsample.1")
    return f"backbone.layer{int(block[1]) - 1}.{block[2]}.{leaf.format('abc'.find(block[3][-1]) + 1)}"


SCHEMES = (
    Scheme(
        name="torchvision",
        anchor=re.compile(r"(?P<prefix>(?:.+\.)?)layer1\.0\.conv1\.weight"),
        last="layer4.0.conv1.weight",
        to_ours=from_torchvision,
    ),
    Scheme(
        name="detectron2",
        anchor=re.compile(r"(?P<prefix>(?:.+\.)?)res2\.0\.conv1\.weight"),
        last="res4.0.conv1.weight",  # a C4 detector has the fifth stage elsewhere
        to_ours=from_detectron2,
    ),
    Scheme(
        name="transformers",
        anchor=re.compile(r"(?P<prefix>(?:.+\.)?)encoder\.stages\.0\.layers\.0\.layer\.0\.convolution\.weight"),
        last="encoder.stages.3.layers.0.layer.0.convolution.weight",
        to_ours=from_transformers,
    ),
    Scheme(
        name="caffe2",
        anchor=re.compile(r"(?P<prefix>)res2_0_branch2a_w"),
        last="res5_0_branch2a_w",
        to_ours=from_caffe2,
    ),
)


def numbered_scheme(names: Iterable[str], first: int, prefix: str) -> Scheme:
    """The scheme of `nn.Sequential(*resnet.children())`, whose parts are numbered and whose first stage is `first`.

    The stem's convolution and norm are the first two numbers before it that have entries.
    """
    stem = sorted(
        {
            int(match[1])
            for name in names
            if name.startswith(prefix) and (match := re.match(r"(\d+)\.\w+$", name.removeprefix(prefix)))
        }
    )
    stem = [number for number in stem if number < first]
    parts = {str(number): part for number, part in zip(stem, ("conv1", "bn1"), strict=False)}
    parts |= {str(first + stage): f"layer{stage + 1}" for stage in range(4)}

    def to_ours(name: str) -> str | None:
        number, _, rest = name.partition(".")
        if number not in parts or not rest or rest in _COUNTERS:
            return None
        return f"backbone.{parts[number]}.{rest}"

    return Scheme(name="numbered", anchor=re.compile(""), last=f"{first + 3}.0.conv1.weight", to_ours=to_ours)


def is_counter(name: str) -> bool:
    """Whether an entry is a count that a profiler leaves in a module."""
    return name.rpartition(".")[2] in _COUNTERS


def add_caffe2_statistics(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add mean 0 and variance 1 - eps to Caffe2's norms, which have no statistics, so that they divide by 1."""
    completed = dict(tensors)
    for name, value in tensors.items():
        if not re.search(r"(bn\d|downsample\.1)\.weight$", name):
            continue
        for leaf, start in (("running_mean", 0.0), ("running_var", 1 - 1e-5)):
            completed.setdefault(name.replace("weight", leaf), torch.full_like(value, start))
    return completed


def from_published_layout(name: str, value: Tensor) -> Tensor:
    """An entry of a published checkpoint in the layout that a `ReSim` has under this name of ours.

    The published queue is (D, K) with a pointer of shape (1,); ours is (K, D) with a scalar position. A value of any
    other shape, and every other entry, is returned unchanged.
    """
    if name == "queue" and value.dim() == 2:
        return value.T.contiguous()
    return value.reshape(()) if name == "queue_position" and value.numel() == 1 else value


# -- to other programs


def to_detectron2(name: str) -> str | None:
    """Detectron2's name for ours, without the prefix that its models add; None for the head, which it does not have.

    `backbone.layer1.0.bn1.bias` -> `res2.0.conv1.norm.bias`, `fpn.lateral5.1.bias` -> `fpn_lateral5.norm.bias`.
    """
    fpn = _FPN.fullmatch(name)
    if fpn:
        part, level, place, leaf = fpn.groups()
        return f"fpn_{part}{level}.{'norm.' if place == '1' else ''}{leaf}"
    if not name.startswith("backbone."):
        return None
    first, _, rest = name.removeprefix("backbone.").partition(".")
    if first in _STAGE_TO_RES:
        rest = re.sub(r"^(\d+)\.bn(\d)\.", r"\1.conv\2.norm.", rest)
        rest = rest.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
        return f"{_STAGE_TO_RES[first]}.{rest}"
    return {"conv1": f"stem.conv1.{rest}", "bn1": f"stem.conv1.norm.{rest}"}.get(first)


def to_torchvision_detection(name: str) -> str | None:
    """The name in torchvision's detectors with an FPN; None for the head.

    Torchvision counts levels from C2 up: `fpn.lateral5.0.weight` -> `backbone.fpn.inner_blocks.3.0.weight`.
    """
    fpn = _FPN.fullmatch(name)
    if fpn:
        part, level, place, leaf = fpn.groups()
        blocks = {"lateral": "inner_blocks", "output": "layer_blocks"}[part]
        return f"backbone.fpn.{blocks}.{int(level) - 2}.{place or '0'}.{leaf}"
    return f"backbone.body.{name.removeprefix('backbone.')}" if name.startswith("backbone.") else None


def from_torchvision_detection(name: str, *, fpn_norm: bool) -> str | None:
    """Our name for a convolution or norm of the FPN of one of our own detectors; None for any other entry.

    `fpn_norm`: whether that FPN has norms.
    """
    fpn = re.fullmatch(r"backbone\.fpn\.(inner|layer)_blocks\.(\d)\.(?:([01])\.)?(\w+)", name)
    if fpn is None:
        return None
    part, index, place, leaf = fpn.groups()
    part = {"inner": "lateral", "layer": "output"}[part]
    place = "1." if place == "1" else "0." if fpn_norm else ""
    return f"fpn.{part}{int(index) + 2}.{place}{leaf}"
