"""Images with label maps, independent of the layout of their files."""

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
    """N images and the files or annotations of their label maps."""

    source: str
    """The path that the user named."""
    kind: str
    """"COCO masks", "VOC masks" or "label maps"."""
    images: tuple[str, ...]
    """Paths."""
    labels: tuple[str | Record, ...]
    """For each image the path of its label map, or its annotations."""
    names: dict[int, str]
    """Names of the classes by value, if they are stated."""
    colours: dict[Colour, int] = field(default_factory=dict)
    """Values of the colours in colour images."""
    notes: tuple[str, ...] = ()
    """What is omitted or repaired, with counts and reasons."""

    def __len__(self) -> int:
        return len(self.images)

    def __str__(self) -> str:
        return f"{counted(len(self), 'image')} ({self.kind}) of {self.source}"

    def take(self, indices: Sequence[int] | np.ndarray) -> LabelledImages:
        """Select images by index, in the order of the indices."""
        chosen = [int(index) for index in indices]
        return replace(
            self,
            images=tuple(self.images[index] for index in chosen),
            labels=tuple(self.labels[index] for index in chosen),
        )

    def sample(self, most: int, seed: int) -> LabelledImages:
        """Sample at most `most` images (0: all) at random; their order is kept."""
        if most <= 0 or len(self) <= most:
            return self
        return self.take(np.sort(np.random.default_rng([9, seed]).permutation(len(self))[:most]))


def omission_note(names: Sequence[str], singular: str, plural: str) -> tuple[str, ...]:
    """A note that counts the omitted files and names the first few; empty if there are none.

    Args:
        names: of the files.
        singular: what one of them is, such as "image without a label map".
        plural: what several of them are.
    """
    if not names:
        return ()
    shown = ", ".join(Path(name).name for name in names[:_EXAMPLES])
    count = counted(len(names), singular, plural)
    return (f"left out: {count}: {shown}{', ...' if len(names) > _EXAMPLES else ''}",)
