"""The learning rate, as a function of the epoch alone: no counter lives outside the training state."""

from __future__ import annotations

import math

from resim.training.config import OptimConfig


def learning_rate(config: OptimConfig, epoch: int) -> float:
    """The learning rate of an epoch (from 0): lr * (1 + cos(pi * epoch / epochs)) / 2, or constant.

    Source: the published ReSim-FPN recipe (MoCo's `--cos`).
    """
    if config.schedule == "constant":
        return config.lr
    return config.lr * (1 + math.cos(math.pi * epoch / config.epochs)) / 2
