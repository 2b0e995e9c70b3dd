"""Numbers as colours."""

from __future__ import annotations

import matplotlib
import numpy as np


def colour_map(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """(...) -> (..., 3) uint8: viridis between `low` and `high`, which colour-blind readers see alike."""
    share = np.clip((values - low) / max(high - low, 1e-9), 0, 1)
    return np.rint(255 * matplotlib.colormaps["viridis"](share)[..., :3]).astype(np.uint8)
