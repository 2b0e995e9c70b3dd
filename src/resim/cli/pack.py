"""Pack images into tar shards (webdataset's layout) that `resim pretrain` reads front to back."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from resim.counts import counted
from resim.errors import UserError
from resim.runs.bars import show_bar
from resim.views.folder import find_images

if TYPE_CHECKING:
    from resim.views.pack import Packed

WHEN_STOPPED = "the unfinished shards are removed, OUT is as before: the same command starts from the beginning"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `resim pack`."""

    sources: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DIR [DIR ...] OUT")]
    """Folders of images (any depth), images, or .txt files with one path a line; last, the folder to write."""
    shard_mb: int = 512
    """Size at which a shard is closed and the next one begun, MB."""
    resize: int = 0
    """Make images whose shorter side is longer than this as small as this, px; 0: copy every file as it is."""
    quality: int = 92
    """JPEG quality of the images that are made smaller."""
    seed: int = 0
    """Seed of the order in which images are packed."""
    workers: int = -1
    """Processes that read images and make them smaller; -1: one a core, 16 at most."""


def run(options: Options) -> None:
    """Pack with a progress bar, and print what was written.

    Raises:
        UserError: as `find_images` and `pack`; options that cannot be.
    """
    if len(options.sources) < 2:
        raise UserError("two folders are needed: resim pack DIR OUT")
    *sources, out = options.sources

    from resim.views.pack import PackConfig, pack

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        config = PackConfig(
            shard_mb=options.shard_mb,
            resize=options.resize,
            quality=options.quality,
            seed=options.seed,
            workers=min(cores, 16) if options.workers == -1 else options.workers,
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    paths = find_images(sources)
    if note := paths.note():
        print(note)
    with show_bar("packing", len(paths)) as show_done:
        packed = pack(paths, out, config, show_done)
    print(_summary(packed, out))


def _summary(packed: Packed, out: Path) -> str:
    text = f"{counted(packed.images, 'image')} in {counted(packed.shards, 'shard')}: {out}"
    return text + (f"; {len(packed.bad)} cannot be read: see {out / 'bad_files.txt'}" if packed.bad else "")
