"""What a writer of one format tells about what it wrote."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor


@dataclass(frozen=True)
class Check:
    """Maps that the target computed from the files as they are, and the images it saw."""

    images: Tensor
    maps: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Written:
    """Files in a staging folder, not yet where they are going."""

    files: tuple[str, ...]
    """Their names."""
    target: str
    """What reads them, such as `torchvision 0.29.0, resnet50`."""
    load: str
    """A line of Python, or a command, that loads them."""
    checks: tuple[Check, ...]
    """Empty where the target is not installed."""
    starts_new: tuple[str, ...] = ()
    """What the target has and the weights have not."""
    left_out: tuple[str, ...] = ()
    """What the weights have and the target has not, under our names."""
    notes: tuple[str, ...] = ()

    def placed(self, out: Path) -> Written:
        """The same with `load` and notes naming the file where it is put, so that lines work where they are printed."""
        load, *notes = (text.replace(repr(out.name), repr(str(out))) for text in (self.load, *self.notes))
        load = load.replace(f" {shlex.quote(out.name)}", f" {shlex.quote(str(out))}")  # an argument of a command
        return dataclasses.replace(self, load=load, notes=tuple(notes))
