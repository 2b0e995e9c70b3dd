"""Names of our weights in other programs; the way back is in `schemes.py` and `pyramids.py`.

Ours are those of `resim.model.encoder.Encoder`: `backbone.layer1.0.conv1.weight` (torchvision's below `backbone.`),
`head.0.weight`, `fpn.lateral5.weight`, or `fpn.lateral5.0.weight` and `fpn.lateral5.1.bias` where the FPN has norms.
"""

from __future__ import annotations

import re

_STAGE_TO_RES = {"layer1": "res2", "layer2": "res3", "layer3": "res4", "layer4": "res5"}
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
    """Our name for a convolution or norm of the FPN of one of our own detectors; None for anything else.

    `fpn_norm`: whether that FPN has norms.
    """
    fpn = re.fullmatch(r"backbone\.fpn\.(inner|layer)_blocks\.(\d)\.(?:([01])\.)?(\w+)", name)
    if fpn is None:
        return None
    part, index, place, leaf = fpn.groups()
    part = {"inner": "lateral", "layer": "output"}[part]
    place = "1." if place == "1" else "0." if fpn_norm else ""
    return f"fpn.{part}{int(index) + 2}.{place}{leaf}"
