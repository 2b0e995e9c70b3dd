"""Label maps with palettes: values by index or by colour, and palettes that differ between files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image

Colour = tuple[int, int, int]


def palette_values(
    path: str,
    indices: np.ndarray,
    image: Image.Image,
    colours: Mapping[Colour, int] | None,
    palettes: Palettes | None,
) -> np.ndarray:
    """The values of (H, W) indices: by the colours of their palette if all are known, otherwise as they are."""
    used = [int(index) for index in np.unique(indices)]
    channels = image.getpalette("RGB") or []
    palette = {index: cast(Colour, tuple(channels[3 * index : 3 * index + 3])) for index in used}
    if colours and all(colour in colours for colour in palette.values()):
        values = np.arange(used[-1] + 1, dtype=np.int32)
        for index, colour in palette.items():
            values[index] = colours[colour]
        return values[indices]
    if palettes is not None:
        palettes.add(path, palette)
    return indices


class Palettes:
    """The palettes of label files, in which one index should have one colour, and one colour one index."""

    def __init__(self) -> None:
        self._colours: dict[int, dict[Colour, str]] = {}
        self._indices: dict[Colour, dict[int, str]] = {}

    def add(self, path: str, palette: Mapping[int, Colour]) -> None:
        """Add the indices that occur in a file, with their colours; colours of several indices are ignored."""
        counts = Counter(palette.values())
        for index, colour in palette.items():
            if counts[colour] == 1:
                self._colours.setdefault(index, {}).setdefault(colour, path)
                self._indices.setdefault(colour, {}).setdefault(index, path)

    def conflict(self) -> str:
        """A colour with two indices, or an index with two colours, and in which files; empty if there is none."""
        for what, known in (("colour", self._indices), ("index", self._colours)):
            for key, files in known.items():
                if len(files) > 1:
                    (first, one), (second, other) = list(files.items())[:2]
                    return f"the {what} {key} is {first} in {Path(one).name} and {second} in {Path(other).name}"
        return ""
