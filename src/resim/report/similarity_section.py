"""The section on similarity: heat maps of one region, for the untrained network and the last checkpoint of each run."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from resim.errors import UserError
from resim.exchange.encoders import LoadedEncoder, load_encoders
from resim.report.page import Part, Pictures, Text
from resim.report.run_files import RunFiles
from resim.similarity.feature_maps import Photograph, feature_maps, load_photograph
from resim.similarity.figures import default_levels, heat_blocks
from resim.similarity.regions import Region
from resim.similarity.sheets import HEAT_NOTE
from resim.views.folder import find_images

NUM_IMAGES, NUM_LEVELS, MAX_SIDE = 3, 2, 640
_MAX_TRIES = 20  # images that are opened until NUM_IMAGES can be decoded


def similarity(runs: Sequence[RunFiles], images: Sequence[Path], seed: int) -> list[Part]:
    """Heat maps of the centre of the first image over a few images, a column for each network.

    Args:
        runs: those that are pre-trainings with a checkpoint are compared; the untrained network is the first one's.
        images: folders or files; empty: the images on which the first run was trained.
        seed: of the choice of images.

    Raises:
        UserError: `images` cannot be read.
    """
    trained = [run for run in runs if run.kind == "pretrain" and run.recipe is not None]
    checkpoints = [(run, path) for run in trained if (path := run.checkpoint) is not None]
    if not checkpoints:
        return []
    first = checkpoints[0][0]
    sources = list(images) or [Path(str(source)) for source in first.config.get("data", {}).get("sources", ())]
    try:
        photographs = _sample_photographs(sources, seed)
    except UserError:
        if images:
            raise
        return [Text(text=f"The images of {first.name} no longer exist: name others with --images.", note=True)]
    if not photographs:
        return []
    # random: the untrained network of the first run's recipe
    loaded = load_encoders(["random", *(str(path) for _, path in checkpoints)])
    names = ["untrained", *(run.name for run, _ in checkpoints)]
    networks = [dataclasses.replace(network, name=name) for network, name in zip(loaded, names, strict=True)]
    omitted: list[Part] = []
    shown, maps = [], []
    for network in networks:
        try:
            maps.append([feature_maps(network.encoder, photograph) for photograph in photographs])
            shown.append(network)
        except UserError as error:  # the report of a diverged run shows everything else
            omitted.append(Text(text=f"{network.name} is omitted: {error}.", note=True))
    if not shown:
        return omitted
    region = central_box(photographs[0].width, photographs[0].height)
    blocks = heat_blocks(photographs, shown, maps, _shown_levels(shown), region, panel_px=320)
    note = "The images were sampled at random, and the region is the centre of the first one: nothing was hand-picked."
    return [Text(text=note), *omitted, *(Pictures(block=block) for block in blocks), Text(text=HEAT_NOTE, note=True)]


def _shown_levels(networks: Sequence[LoadedEncoder]) -> tuple[str, ...]:
    """At most two levels; C4, which stands for networks without a region loss, is always one of them."""
    levels = default_levels(networks)
    return (levels[0], "C4") if levels[NUM_LEVELS:] and "C4" in levels else levels[:NUM_LEVELS]


def _sample_photographs(sources: Sequence[Path], seed: int) -> list[Photograph]:
    """Sample a few images at random; those that cannot be decoded are skipped."""
    paths = find_images(sources)
    photographs: list[Photograph] = []
    for i in np.random.default_rng([6, seed]).permutation(len(paths))[:_MAX_TRIES]:
        with contextlib.suppress(UserError):
            photographs.append(load_photograph(paths[int(i)], MAX_SIDE))
        if len(photographs) == NUM_IMAGES:
            break
    return photographs


def central_box(width: int, height: int, side: int = 48) -> Region:
    """A box of at most `side` px at the centre of an image: (x0, y0, x1, y1)."""
    half_width, half_height = min(side, width) / 2, min(side, height) / 2
    x, y = width / 2, height / 2
    return x - half_width, y - half_height, x + half_width, y + half_height
