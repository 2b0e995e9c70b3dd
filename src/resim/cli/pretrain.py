"""Pre-train on folders of images without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from resim.cli.options import Command, Sources
from resim.cli.recipe_options import named_or_stored, pretrain_recipe
from resim.errors import UserError
from resim.exit_codes import FINISHED, STOPPED
from resim.model.config import ModelConfig
from resim.runs.config import OptimConfig, Recipe, RunConfig, read_run_settings
from resim.views.config import ViewsConfig

WHEN_STOPPED = (
    "checkpoints in --out are kept: the same command with --out and --resume auto continues, or starts from the "
    "beginning"
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `resim pretrain`."""

    sources: Sources
    """Folders of images (any depth), images, or .txt files with one path a line."""
    recipe: str = "resim-fpn"
    """Name of a recipe (`resim recipes` lists them), or a JSON file such as a run's config.json."""
    model: ModelConfig
    views: ViewsConfig
    optim: OptimConfig
    run: RunConfig
    command: Command = ()


def defaults(argv: Sequence[str]) -> Options:
    """The values of the recipe that --recipe names, or all settings of the run to resume."""
    name, stored = named_or_stored(argv, "pretrain")
    name = name or (str(stored) if stored else "resim-fpn")
    recipe, run = pretrain_recipe(name), read_run_settings(stored) if stored else RunConfig()
    return Options(
        sources=tyro.MISSING, recipe=name, model=recipe.model, views=recipe.views, optim=recipe.optim, run=run,
        command=("pretrain", *argv),
    )  # fmt: skip


def run(options: Options) -> int:
    """Pre-train, or resume a run.

    Returns:
        The exit code.

    Raises:
        UserError: as `pretrain`; settings that do not go together.
    """
    name = pretrain_recipe(options.recipe).name
    try:
        recipe = Recipe(name=name, model=options.model, views=options.views, optim=options.optim)
    except ValueError as error:
        raise UserError(str(error)) from None
    if options.run.resume and options.run.out is None:
        raise UserError("--resume needs --out: the folder of the run to continue")

    from resim.probes.online import OnlineProbe
    from resim.training.advice import program_words
    from resim.training.pretrain import pretrain

    words = program_words()
    command = [*words, *options.command] if words else []
    result = pretrain(recipe, options.run, options.sources, probe=OnlineProbe, command=command)
    return STOPPED if result.stopped else FINISHED
