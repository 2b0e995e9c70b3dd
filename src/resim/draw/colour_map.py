"""A colour map for scalar fields."""

from __future__ import annotations

import matplotlib
import numpy as np


def colour_map(values: np.ndarray, minimum: float, maximum: float) -> np.ndarray:
    """Map values (...) to viridis, which is safe for colour-blind readers: (..., 3) uint8.

    Args:
        values: of any shape; those outside the range are clipped.
        minimum: the value of the first colour, dark blue.
        maximum: the value of the last colour, yellow.
    """
    fraction = np.clip((values - minimum) / max(maximum - minimum, 1e-9), 0, 1)
    return np.rint(255 * matplotlib.colormaps["viridis"](fraction)[..., :3]).astype(np.uint8)
