"""Measure loader and step on this machine and your folder: what limits, and which settings to use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from resim.bench.config import BenchConfig
from resim.cli.options import Sources
from resim.cli.recipe_options import named_or_stored, pretrain_recipe
from resim.errors import UserError
from resim.model.config import ModelConfig
from resim.runs.config import OptimConfig, Recipe
from resim.views.config import ViewsConfig
from resim.views.folder import find_images


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `resim bench`."""

    sources: Sources
    """Folders of images (any depth), images, shards, or .txt files with one path a line."""
    recipe: str = "resim-fpn"
    """Name of a recipe, or a JSON file such as a run's config.json."""
    model: ModelConfig
    views: ViewsConfig
    optim: OptimConfig
    bench: BenchConfig


def defaults(argv: Sequence[str]) -> Options:
    """The values of the recipe that --recipe names."""
    name = named_or_stored(argv, "bench")[0] or "resim-fpn"
    recipe = pretrain_recipe(name)
    return Options(
        sources=tyro.MISSING, recipe=name, model=recipe.model, views=recipe.views, optim=recipe.optim,
        bench=BenchConfig(),
    )  # fmt: skip


def run(options: Options) -> None:
    """Measure and print.

    Raises:
        UserError: as `find_images` and `bench`; settings that do not go together; a loader process was killed.
    """
    try:
        recipe = Recipe(name=options.recipe, model=options.model, views=options.views, optim=options.optim)
    except ValueError as error:
        raise UserError(str(error)) from None
    paths = find_images(options.sources)
    if note := paths.note():
        print(note)

    from resim.bench.report import bench
    from resim.views.workers import report_killed_workers

    with report_killed_workers():
        bench(paths, recipe, options.bench)
