"""List the protocols, or print one whole as JSON: `resim detect recipes NAME`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from resim.cli.recipe_options import detect_recipe, print_recipe, print_recipes
from resim.detection.recipes import DETECT_RECIPES


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `resim detect recipes`."""

    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")] = None
    """A protocol, printed with every field; none: a table of all."""


def run(options: Options) -> None:
    """Print one protocol, or a table of all.

    Raises:
        UserError: no protocol of that name.
    """
    if options.name is not None:
        print_recipe(detect_recipe(options.name))
        return
    rows = {}
    for name, make in DETECT_RECIPES.items():
        recipe = make()
        sizes, tune = recipe.images.min_sizes, recipe.tune
        cells = (recipe.detector.neck, f"{tune.steps} of {tune.batch_size}", f"{sizes[0]}-{sizes[-1]}")
        rows[name] = (make, cells)
    print_recipes(("neck", "steps", "px"), rows)
