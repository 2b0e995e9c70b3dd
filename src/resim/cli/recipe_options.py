"""Recipes on the command line: the one that words name, the one of a run to resume, and lists of them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from rich.console import Console
from rich.table import Table

from resim.cli.options import with_resume_values
from resim.cli.rules import nearest
from resim.detection.config import DetectRecipe
from resim.detection.recipes import DETECT_RECIPES
from resim.errors import UserError
from resim.recipes import RECIPES
from resim.runs.config import AnyRecipe, Recipe, read_recipe

R = TypeVar("R", Recipe, DetectRecipe)


def pretrain_recipe(name: str) -> Recipe:
    """The recipe of a name, or of a .json file.

    Raises:
        UserError: there is none.
    """
    return _recipe(name, RECIPES, Recipe, "recipe")


def detect_recipe(name: str) -> DetectRecipe:
    """The protocol of a name, or of a .json file.

    Raises:
        UserError: there is none.
    """
    return _recipe(name, DETECT_RECIPES, DetectRecipe, "protocol")


def _recipe(name: str, recipes: Mapping[str, Callable[[], R]], kind: type[R], noun: str) -> R:
    if name in recipes:
        return recipes[name]()
    if Path(name).suffix == ".json":
        return read_recipe(Path(name), kind)
    raise UserError(
        f"no {noun} {name!r}: one of {', '.join(recipes)}, or a .json file that holds one{nearest(name, recipes)}"
    )


def named_or_stored(argv: Sequence[str], verb: str) -> tuple[str | None, Path | None]:
    """What --recipe names, and the config.json of the run to resume where it names none."""
    parser = _OneLineParser(prog=f"resim {verb}", add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", default="no")
    words = with_resume_values([word for word in argv if word not in ("-h", "--help")])
    known, _ = parser.parse_known_args(words)
    if known.recipe is not None or known.resume == "no" or known.out is None:
        return known.recipe, None
    stored = known.out / "config.json"
    return None, stored if stored.exists() else None


class _OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are UserErrors."""

    def error(self, message: str) -> NoReturn:
        """Raise the error, where argparse would print it and exit."""
        raise UserError(f"{message} ({self.prog} --help explains the options)")


def print_recipe(recipe: AnyRecipe) -> None:
    """Print a recipe with every field, as JSON that `--recipe` reads."""
    print(json.dumps(recipe.to_json(), indent=2))


def print_recipes(columns: Sequence[str], rows: Mapping[str, tuple[Callable[[], AnyRecipe], Sequence[object]]]) -> None:
    """Print a table of recipes.

    Args:
        columns: headings between the name and the description.
        rows: by name, the function that makes the recipe, whose docstring describes it, and the cells.
    """
    table = Table("recipe", *columns, "what", box=None, padding=(0, 2, 0, 0))
    for name, (make, cells) in rows.items():
        table.add_row(name, *map(str, cells), (make.__doc__ or "").strip())
    Console(width=None if sys.stdout.isatty() else 180).print(table)
