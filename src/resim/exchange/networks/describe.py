"""Sentences about a foreign file with a ResNet: what it is, and which of several networks is taken."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from resim.exchange.names import PUBLISHED_HEAD, PUBLISHED_QUERY
from resim.exchange.networks.recognise import Form
from resim.exchange.networks.unknown_networks import resembled
from resim.model.encoder import ModelConfig

_OTHER_HEAD = re.compile(rf"{re.escape(PUBLISHED_QUERY)}(?!{re.escape(PUBLISHED_HEAD)})")
_DETECTOR = re.compile(r"roi_heads|proposal_generator|(^|\.)head\.")


def describe_file(
    form: Form, tensors: Mapping[str, Tensor], config: ModelConfig, left_over: Sequence[str], epoch: int | None
) -> str:
    """What a foreign file is, such as `Detectron2 backbone (resnet50 with an FPN)`.

    Args:
        form: of the file.
        tensors: its network, under our names.
        config: of that network.
        left_over: names of the entries that are not read.
        epoch: where the file states one.
    """
    has_fpn = any(name.startswith("fpn.") for name in tensors)
    norms = " with BatchNorm" if config.fpn_norm else ""
    network = f"{config.backbone} with an FPN{norms}" if has_fpn else config.backbone
    if form.name == "published":
        after = "" if epoch is None else f", epoch {epoch}"
        program = _published_program(form, tensors, left_over)
        if program is None:
            return f"checkpoint with MoCo's names ({network}{after})"
        return f"published {program} checkpoint ({network}{after})"
    if form.name == "detectron2":
        kind = "detector" if any(_DETECTOR.search(name) for name in left_over) else "backbone"
        return f"Detectron2 {kind} ({network})"
    if form.name == "torchvision-detection":
        return f"torchvision detector ({network})"
    if form.name == "mmdet":
        return f"MMDetection's detector ({network})"
    if form.name == "caffe2":
        return f"Caffe2 backbone ({config.backbone})"
    if form.name == "resim":
        return f"resim weights without their recipe ({network})"
    below = f" below {form.network.label!r}" if form.network.prefix else ""
    names = {"numbered": "numbered parts (nn.Sequential)", "transformers": "the names of transformers"}.get(
        form.network.scheme.name, "torchvision's names, as torchvision and timm save it"
    )
    return f"ResNet with {names} ({network}{below})"


def _published_program(form: Form, tensors: Mapping[str, Tensor], left_over: Sequence[str]) -> str | None:
    """The program that wrote a published checkpoint, as far as its FPN, head and queue show; None: another one."""
    if any(name.startswith("fpn.") for name in tensors):
        return "ReSim-FPN"
    bare = {name: short for short, name in form.state.bare.items()}
    if any(_OTHER_HEAD.match(bare.get(name, name)) for name in left_over):
        return "ReSim-C4 or similar"
    if any(name.startswith("head.") for name in tensors):
        return "MoCo v2 (or ReSim-C4)"
    return "MoCo v1" if form.queue else None


def describe_choice(form: Form, path: Path) -> str:
    """A warning that a file has several networks: which is read, and the command that makes another readable.

    Args:
        form: of the file.
        path: the file.
    """
    taken = f"below {form.network.label!r}" if form.network.label else "at the top of the file"
    places = ", ".join(repr(label) if label else "its top" for label in form.others[:6])
    places += ", ..." if len(form.others) > 6 else ""
    other = next((label for label in form.others if label), None)
    if other is None:
        return f"the network {taken} is read; there are others below {places}"
    name = re.sub(r"[^A-Za-z0-9]+", "-", f"{path.stem}-{other}").strip("-")
    command = f"resim import {shlex.quote(str(path))} --prefix {shlex.quote(other)} --out {name}.pt"
    return (
        f"the network {taken} is read; there are others below {places}: {command} writes one of them to a file that "
        "every verb reads in place of this one"
    )


def describe_place(form: Form) -> str:
    """Where the network is that is taken from a file with several; "" for a file with one."""
    return f" below {form.network.label!r} (others are below {', '.join(form.others)})" if form.others else ""


def describe_other(form: Form) -> str:
    """What else the names of a network show that is no plain ResNet, for a message."""
    ours = set(form.ours.values())
    if "backbone.conv1.bias" in ours and not any(name.startswith("backbone.bn1.") for name in ours):
        return " (its norms seem to be folded into its convolutions, as for inference)"
    prefix = form.network.prefix
    kind = resembled([name.removeprefix(prefix) for name in form.state.bare if name.startswith(prefix)])
    return f" (it resembles {kind})" if kind else ""
