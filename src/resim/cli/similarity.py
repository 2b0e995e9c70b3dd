"""Show where a region lies in other images, which regions match between images, and what a feature map holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from resim.errors import UserError

MOST_IMAGES = 12


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `resim similarity`."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE [IMAGE ...]")]
    """The image that holds the region, then others in which it is looked for."""
    checkpoint: Annotated[tuple[str, ...], tyro.conf.arg(metavar="CKPT [CKPT ...]")]
    """Weights, side by side: random, a run's folder, a file of weights of any program that resim import reads, or
    torchvision:NAME such as torchvision:resnet50 (ImageNet's weights, downloaded once). random is the untrained network
    of the first one's recipe, random:RECIPE that of another."""
    point: Annotated[str | None, tyro.conf.arg(metavar="X,Y")] = None
    """X,Y of the first image: the region is the place there, px."""
    box: Annotated[str | None, tyro.conf.arg(metavar="X0,Y0,X1,Y1")] = None
    """X0,Y0,X1,Y1 of the first image: the region is this box, pooled precisely, px."""
    levels: Annotated[tuple[str, ...], tyro.conf.arg(metavar="LEVEL [LEVEL ...]")] = ()
    """Feature maps such as P4 P3 C4; default: those that the region loss was trained on."""
    out: Path = Path("similarity")
    """Folder of the pictures: heat.png, matches.png, pca.png."""
    max_side: int = 1024
    """Images whose longer side is above this are made smaller before they are encoded, px."""
    pairs: int = 12
    """Mutual nearest regions that are drawn, at most."""


def run(options: Options) -> None:
    """Write the pictures and print their paths.

    Raises:
        UserError: as `find_images` and `write_similarity`; options that cannot work.
    """
    if options.point is not None and options.box is not None:
        raise UserError("--point and --box: name one of them, they are the same region")
    numbers = {"--point": (options.point, 2), "--box": (options.box, 4)}
    regions = [_numbers(name, text, count) for name, (text, count) in numbers.items() if text is not None]
    for name, value, least in (("--max-side", options.max_side, 32), ("--pairs", options.pairs, 1)):
        if value < least:
            raise UserError(f"{name} {value}: must be at least {least}")

    from resim.similarity.sheets import write_similarity
    from resim.views.folder import find_images

    paths = find_images(options.images)
    if note := paths.note():
        print(note)
    if len(paths) > MOST_IMAGES:
        raise UserError(f"{len(paths)} images are more than a sheet can show: name at most {MOST_IMAGES}")
    written = write_similarity(
        list(paths),
        options.checkpoint,
        options.out,
        region=regions[0] if regions else None,
        levels=options.levels,
        max_side=options.max_side,
        pairs=options.pairs,
    )
    for path in written:
        print(path)


def _numbers(option: str, text: str, count: int) -> tuple[float, ...]:
    try:
        values = tuple(float(word) for word in text.split(","))
    except ValueError:
        values = ()
    if len(values) != count or not all(abs(value) < 1e9 for value in values):
        shape = "X,Y" if count == 2 else "X0,Y0,X1,Y1"
        raise UserError(f"{option} {text}: must be {shape}, {count} numbers of px with commas between them")
    return values
