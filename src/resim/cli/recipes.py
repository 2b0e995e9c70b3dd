"""List the recipes, or print one whole as JSON: `resim recipes NAME`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from resim.cli.recipe_options import pretrain_recipe, print_recipe, print_recipes
from resim.recipes import RECIPES


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `resim recipes`."""

    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")] = None
    """A recipe, printed with every field; none: a table of all."""


def run(options: Options) -> None:
    """Print one recipe, or a table of all.

    Raises:
        UserError: no recipe of that name.
    """
    if options.name is not None:
        print_recipe(pretrain_recipe(options.name))
        return
    rows = {}
    for name, make in RECIPES.items():
        recipe = make()
        levels = " ".join(level.name for level in recipe.model.levels) or "-"
        batch = f"{recipe.optim.batch_size} in groups of {recipe.model.group_size}"
        rows[name] = (make, (recipe.model.backbone, levels, recipe.views.image_size, batch, recipe.optim.epochs))
    print_recipes(("backbone", "levels", "view px", "batch", "epochs"), rows)
