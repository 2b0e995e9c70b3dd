"""What programs call the parts of the same ResNet: each scheme's names below a prefix, as ours.

Ours are torchvision's below `backbone.`. An entry of the ResNet's own parts gets a name below `backbone.` even if a
plain ResNet has no such entry (a squeeze, an offset, a bias): whoever reads it can then refuse it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_COUNTERS = ("total_ops", "total_params")  # which profilers put into modules
_BLOBS = {
    "w": "conv{}.weight", "bn_s": "bn{}.weight", "bn_b": "bn{}.bias", "bn_gamma": "bn{}.weight", "bn_beta": "bn{}.bias",
    "bn_running_mean": "bn{}.running_mean", "bn_running_var": "bn{}.running_var",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A way of naming a ResNet's parts."""

    name: str
    anchor: re.Pattern[str]
    """What the first convolution of the first block is called; the group `prefix` is what stands before the ResNet."""
    last: str
    """What the name of a whole ResNet's last stage has after the prefix."""
    ours: Callable[[str], str | None]
    """Our name for a name without its prefix; None for what is no part of the ResNet."""


def _torchvision(name: str) -> str | None:
    return f"backbone.{name}" if re.match(r"(conv1|bn1|layer[1-4]\.\d+)\.", name) else None


def _detectron2(name: str) -> str | None:
    stem = re.fullmatch(r"stem\.conv1\.(norm\.)?(\w+)", name)
    if stem:
        return f"backbone.{'bn1' if stem[1] else 'conv1'}.{stem[2]}"
    block = re.fullmatch(r"res([2-5])\.(\d+)\.(.+)", name)
    if block is None:
        return f"backbone.{name}" if re.match(r"stem\.conv\d", name) else None
    part = re.sub(r"^conv(\d)\.norm\.", r"bn\1.", block[3])
    part = re.sub(r"^shortcut\.norm\.", "downsample.1.", part)
    return f"backbone.layer{int(block[1]) - 1}.{block[2]}.{re.sub(r'^shortcut[.]', 'downsample.0.', part)}"


def _transformers(name: str) -> str | None:
    """Hugging Face's `transformers`: ResNetModel."""
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


def _caffe2(name: str) -> str | None:
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


def with_statistics(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Caffe2's norms, which keep no statistics, with mean 0 and variance 1 - eps, so that they divide by 1."""
    out = dict(tensors)
    for name, value in tensors.items():
        if not re.search(r"(bn\d|downsample\.1)\.weight$", name):
            continue
        for leaf, start in (("running_mean", 0.0), ("running_var", 1 - 1e-5)):
            out.setdefault(name.replace("weight", leaf), torch.full_like(value, start))
    return out


SCHEMES = (
    Scheme(
        name="torchvision",
        anchor=re.compile(r"(?P<prefix>(?:.+\.)?)layer1\.0\.conv1\.weight"),
        last="layer4.0.conv1.weight",
        ours=_torchvision,
    ),
    Scheme(
        name="detectron2",
        anchor=re.compile(r"(?P<prefix>(?:.+\.)?)res2\.0\.conv1\.weight"),
        last="res4.0.conv1.weight",  # a C4 detector has the fifth stage elsewhere
        ours=_detectron2,
    ),
    Scheme(
        name="transformers",
        anchor=re.compile(r"(?P<prefix>(?:.+\.)?)encoder\.stages\.0\.layers\.0\.layer\.0\.convolution\.weight"),
        last="encoder.stages.3.layers.0.layer.0.convolution.weight",
        ours=_transformers,
    ),
    Scheme(
        name="caffe2",
        anchor=re.compile(r"(?P<prefix>)res2_0_branch2a_w"),
        last="res5_0_branch2a_w",
        ours=_caffe2,
    ),
)


def numbered(names: Iterable[str], first: int, prefix: str) -> Scheme:
    """The scheme of `nn.Sequential(*resnet.children())`: parts by number, whose first stage is `first`.

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
    places = {str(number): part for number, part in zip(stem, ("conv1", "bn1"), strict=False)}
    places |= {str(first + stage): f"layer{stage + 1}" for stage in range(4)}

    def ours(name: str) -> str | None:
        number, _, rest = name.partition(".")
        if number not in places or not rest or rest in _COUNTERS:
            return None
        return f"backbone.{places[number]}.{rest}"

    return Scheme(name="numbered", anchor=re.compile(""), last=f"{first + 3}.0.conv1.weight", ours=ours)


def is_counter(name: str) -> bool:
    """Whether an entry is what profilers leave in modules."""
    return name.rpartition(".")[2] in _COUNTERS
