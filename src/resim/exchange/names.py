"""Names of the same weights in several programs: each program's name for ours, and back.

Ours are those of `resim.model.encoder.Encoder`: `backbone.layer1.0.conv1.weight` (torchvision's below `backbone.`),
`head.0.weight`, `fpn.lateral5.weight`, or `fpn.lateral5.0.weight` and `fpn.lateral5.1.bias` where the FPN has norms.
"""

from __future__ import annotations

import re

_STAGE_TO_RES = {"layer1": "res2", "layer2": "res3", "layer3": "res4", "layer4": "res5"}
_RES_TO_STAGE = {res: stage for stage, res in _STAGE_TO_RES.items()}
_FPN = re.compile(r"fpn\.(lateral|output)(\d)\.(?:([01])\.)?(\w+)")


def to_detectron2(name: str) -> str | None:
    """Detectron2's name for ours, without the prefix that its models add; None for what it has not (the head).

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


def from_detectron2(name: str, *, fpn_norm: bool) -> str | None:
    """Our name for one of Detectron2's, with or without a model's prefix; None for what we have not.

    `fpn_norm`: the FPN it belongs to has norms. The published ReSim files write a normalised FPN as `fpn_lateral5.0`
    and `.1`, and their head as `stem.fc`.
    """
    fpn = re.fullmatch(r"(?:backbone\.)?fpn_(lateral|output)(\d)\.(?:(norm|0|1)\.)?(\w+)", name)
    if fpn:
        part, level, place, leaf = fpn.groups()
        return f"fpn.{part}{level}.{_place(place in ('norm', '1'), fpn_norm)}{leaf}"
    name = re.sub(r"^(backbone\.bottom_up|backbone|roi_heads(?=\.res5))\.", "", name)
    head = re.fullmatch(r"stem\.fc\.([02])\.(weight|bias)", name)
    if head:
        return f"head.{head[1]}.{head[2]}"
    stem = re.fullmatch(r"stem\.conv1\.(norm\.)?(\w+)", name)
    if stem:
        return f"backbone.{'bn1' if stem[1] else 'conv1'}.{stem[2]}"
    block = re.fullmatch(r"(res[2-5])\.(\d+)\.(conv[123]|shortcut)\.(norm\.)?(\w+)", name)
    if block is None:
        return None
    res, index, part, norm, leaf = block.groups()
    if part == "shortcut":
        part = "downsample.1" if norm else "downsample.0"
    elif norm:
        part = f"bn{part[-1]}"
    return f"backbone.{_RES_TO_STAGE[res]}.{index}.{part}.{leaf}"


def to_torchvision_detection(name: str) -> str | None:
    """The name in torchvision's detectors with an FPN; None for the head.

    It counts from C2 up: `fpn.lateral5.0.weight` -> `backbone.fpn.inner_blocks.3.0.weight`.
    """
    fpn = _FPN.fullmatch(name)
    if fpn:
        part, level, place, leaf = fpn.groups()
        blocks = {"lateral": "inner_blocks", "output": "layer_blocks"}[part]
        return f"backbone.fpn.{blocks}.{int(level) - 2}.{place or '0'}.{leaf}"
    return f"backbone.body.{name.removeprefix('backbone.')}" if name.startswith("backbone.") else None


def from_torchvision_detection(name: str, *, fpn_norm: bool) -> str | None:
    """Our name for one of torchvision's detectors with an FPN, which has norms or not; None for what we have not."""
    fpn = re.fullmatch(r"backbone\.fpn\.(inner|layer)_blocks\.(\d)\.(?:([01])\.)?(\w+)", name)
    if fpn:
        part, index, place, leaf = fpn.groups()
        part = {"inner": "lateral", "layer": "output"}[part]
        return f"fpn.{part}{int(index) + 2}.{_place(place == '1', fpn_norm)}{leaf}"
    name = re.sub(r"^roi_heads\.box_head\.(?=layer4\.)", "backbone.body.", name)  # the fifth stage of our C4 detectors
    return f"backbone.{name.removeprefix('backbone.body.')}" if name.startswith("backbone.body.") else None


def _place(is_norm: bool, fpn_norm: bool) -> str:
    """Where an entry stands in our FPN: a convolution and its norm are `0` and `1` of a sequence."""
    return "1." if is_norm else "0." if fpn_norm else ""
