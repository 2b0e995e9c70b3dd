"""The learning rate as a function of the step alone, so that it needs no state."""

from __future__ import annotations

import math

from resim.runs.config import OptimConfig


def learning_rate(config: OptimConfig, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step.

    Without warm-up it is lr for "constant", and otherwise lr * (1 + cos(pi * t / epochs)) / 2, where t is the number of
    epochs done: completed epochs for "cosine", with the fraction of the current one for "cosine-per-step". Over the
    first `warmup_epochs` epochs it rises linearly, lr * (step + 1) / warm-up steps, and the cosine covers the rest.

    Args:
        config: optimiser and schedule.
        step: steps done.
        steps_per_epoch: steps of an epoch.

    Source: the published ReSim-FPN recipe (MoCo's `--cos`); with warm-up and per step, MoCo v3 (arXiv 2104.02057).
    """
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup_steps:
        return config.lr * (step + 1) / warmup_steps
    if config.schedule == "constant":
        return config.lr
    done = step // steps_per_epoch if config.schedule == "cosine" else step / steps_per_epoch
    decayed = max(0.0, done - config.warmup_epochs)
    return config.lr * (1 + math.cos(math.pi * decayed / (config.epochs - config.warmup_epochs))) / 2
