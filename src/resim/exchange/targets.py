"""What weights can be exported to, the endings of the files, and what the writer of a target returns."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # the command line reads the names of the targets, and PyTorch is slow to import
    from torch import Tensor

Target = Literal["torchvision", "torchvision-detection", "detectron2", "timm", "safetensors", "hub", "onnx"]

WHOLE: tuple[Target, ...] = ("torchvision-detection", "safetensors", "hub")
"""Targets that take a complete detector; the others take its backbone, and its FPN where they have one."""
FpnNorm = Literal["auto", "keep", "plain", "batchnorm"]

ENDINGS: dict[Target, tuple[str, ...]] = {
    "torchvision": (".pth", ".pt", ".safetensors"),
    "torchvision-detection": (".pth", ".pt", ".safetensors"),
    "detectron2": (".pth", ".pkl"),
    "timm": (".safetensors", ".pth", ".pt"),
    "safetensors": (".safetensors",),
    "hub": ("",),
    "onnx": (".onnx",),
}
"""The first is the default; "" is a folder."""


@dataclass(frozen=True)
class Check:
    """Maps that the target computed from the written files, and the images that it was given."""

    images: Tensor
    maps: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Written:
    """Files in a staging folder, not yet moved into place."""

    files: tuple[str, ...]
    """Their names."""
    target: str
    """What reads them, such as `torchvision 0.29.0, resnet50`."""
    load: str
    """A line of Python, or a command, that loads them."""
    checks: tuple[Check, ...]
    """Empty where the target is not installed."""
    starts_new: tuple[str, ...] = ()
    """Entries of the target that the weights do not have."""
    left_out: tuple[str, ...] = ()
    """Entries of the weights that the target does not have, under our names."""
    notes: tuple[str, ...] = ()

    def placed(self, out: Path) -> Written:
        """The same, with the path `out` in `load` and the notes, so that the printed lines work where they are read."""
        load, *notes = (text.replace(repr(out.name), repr(str(out))) for text in (self.load, *self.notes))
        load = load.replace(f" {shlex.quote(out.name)}", f" {shlex.quote(str(out))}")  # an argument of a command
        return dataclasses.replace(self, load=load, notes=tuple(notes))
