"""Draw augmented view pairs with the windows that the loss compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from resim.cli.options import Sources
from resim.cli.recipe_options import named_or_stored, pretrain_recipe
from resim.errors import UserError
from resim.regions.level import Level
from resim.views.config import ViewsConfig

FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `resim preview`."""

    sources: Sources
    """Folders of images (any depth), images, or .txt files with one path a line."""
    recipe: str = "resim-fpn"
    """Name of a recipe, or a JSON file such as a run's config.json."""
    out: Path = Path("preview.png")
    """Picture to write."""
    count: int = 6
    """View pairs on the sheet."""
    seed: int = 0
    """Seed of the images and views."""
    levels: tuple[Level, ...] = ()
    """Levels whose windows are drawn, such as P4:window=48,step=32 (px)."""
    views: ViewsConfig


def defaults(argv: Sequence[str]) -> Options:
    """The levels and views of the recipe that --recipe names."""
    name = named_or_stored(argv, "preview")[0] or "resim-fpn"
    recipe = pretrain_recipe(name)
    return Options(sources=tyro.MISSING, recipe=name, levels=recipe.model.levels, views=recipe.views)


def run(options: Options) -> None:
    """Write the sheet and print its path.

    Raises:
        UserError: as `find_images`; options that cannot work.
    """
    if options.count < 1:
        raise UserError(f"--count {options.count}: must be at least 1")
    if options.out.suffix.lower() not in FORMATS:
        raise UserError(f"--out {options.out}: must end in .png, .jpg or .webp")
    try:
        for level in options.levels:
            level.check_windows(options.views.image_size)
    except ValueError as error:
        raise UserError(str(error)) from None

    from resim.views.folder import find_images

    paths = find_images(options.sources)
    if note := paths.note():
        print(note)

    from resim.draw.view_pairs import preview
    from resim.runs.checkpoints import write_atomically

    sheet = preview(paths, options.views, options.levels, count=options.count, seed=options.seed)
    write_atomically(options.out, lambda file: sheet.save(file, format=FORMATS[options.out.suffix.lower()]))
    print(options.out)
