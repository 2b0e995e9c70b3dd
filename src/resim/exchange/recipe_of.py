"""The recipe that foreign weights were made by, as far as their names and shapes say."""

from __future__ import annotations

import dataclasses

from resim.exchange.weights import Weights
from resim.recipes import moco_v2, resim_fpn
from resim.runs.config import Recipe


def recipe_of(weights: Weights) -> Recipe:
    """The file's own recipe; else ReSim-FPN's where there is an FPN, MoCo v2's where there is none."""
    if weights.recipe is not None:
        return weights.recipe
    recipe = resim_fpn() if weights.config.levels else moco_v2()
    return dataclasses.replace(recipe, model=weights.config)
