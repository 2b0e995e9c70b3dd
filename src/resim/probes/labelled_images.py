"""Images with a label map each, whatever layout they were read from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from resim.counts import counted
from resim.datasets.records import Record
from resim.probes.label_files import Colour

_EXAMPLES = 3  # names in a note


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """N images and where the label map of each is."""

    source: str
    """What was named."""
    kind: str
    """"COCO masks", "VOC masks" or "label maps"."""
    images: tuple[str, ...]
    """Paths."""
    labels: tuple[str | Record, ...]
    """Of each image the path of its label map, or its objects."""
    names: dict[int, str]
    """Names of the classes by value, as far as they are stated."""
    colours: dict[Colour, int] = field(default_factory=dict)
    """Values of the colours in colour images."""
    notes: tuple[str, ...] = ()
    """What was left out or repaired, with counts and reasons."""

    def __len__(self) -> int:
        return len(self.images)

    def __str__(self) -> str:
        return f"{counted(len(self), 'image')} ({self.kind}) of {self.source}"

    def take(self, indices: Sequence[int] | np.ndarray) -> LabelledImages:
        """Some of the images, in the order given."""
        chosen = [int(index) for index in indices]
        return replace(
            self,
            images=tuple(self.images[index] for index in chosen),
            labels=tuple(self.labels[index] for index in chosen),
        )

    def sample(self, most: int, seed: int) -> LabelledImages:
        """At most `most` images (0: all), chosen at random, in their old order."""
        if most <= 0 or len(self) <= most:
            return self
        return self.take(np.sort(np.random.default_rng([9, seed]).permutation(len(self))[:most]))


def left_out(names: Sequence[str], what: str, many: str) -> tuple[str, ...]:
    """The note that counts images or label maps left out, with the first few names; none if there are none.

    Args:
        names: of the files.
        what: one of them, such as "image without a label map".
        many: several of them.
    """
    if not names:
        return ()
    shown = ", ".join(Path(name).name for name in names[:_EXAMPLES])
    count = counted(len(names), what, many)
    return (f"left out: {count}: {shown}{', ...' if len(names) > _EXAMPLES else ''}",)
