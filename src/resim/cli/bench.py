"""`resim bench`: how fast this machine pre-trains on a folder, and what limits it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from resim.bench.config import BenchConfig
from resim.errors import UserError
from resim.model.config import ModelConfig
from resim.runs.config import OptimConfig, Recipe
from resim.views.config import ViewsConfig
from resim.views.folder import find_images


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Options of `resim bench`."""

    sources: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DIR [DIR ...]")]
    """Folders of images (any depth), images, shards, or .txt files with one path a line."""
    recipe: str = "resim-fpn"
    """Name of a recipe, or a JSON file such as a run's config.json."""
    model: ModelConfig
    views: ViewsConfig
    optim: OptimConfig
    bench: BenchConfig


def run(options: BenchOptions) -> None:
    """Measure and print.

    Raises:
        UserError: as `find_images` and `bench`; a recipe that cannot be.
    """
    try:
        recipe = Recipe(name=options.recipe, model=options.model, views=options.views, optim=options.optim)
    except ValueError as error:
        raise UserError(str(error)) from None
    paths = find_images(options.sources)
    if note := paths.note():
        print(note)

    from resim.bench.report import bench

    bench(paths, recipe, options.bench)
