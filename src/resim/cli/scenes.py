"""Draw scenes of textured objects: JPEG files with COCO-style boxes and masks, the same for the same seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `resim scenes`."""

    out: Annotated[Path, tyro.conf.Positional]
    """Folder for images/ and instances.json."""
    count: int = 512
    """Number of scenes."""
    seed: int = 0
    """Same seed, same files."""
    width: int = 320
    """Width of a scene, px."""
    height: int = 240
    """Height of a scene, px."""


def run(options: Options) -> None:
    """Write the scenes and print the path of their annotations.

    Raises:
        UserError: as `write_scenes`.
    """
    from resim.scenes.scenes import write_scenes

    print(write_scenes(options.out, options.count, seed=options.seed, width=options.width, height=options.height))
