"""The report of runs: a verdict, what ran, curves, matched windows, similarity before and after, probes, detections.

What a run's folder holds is shown, what it does not hold is left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from resim.errors import UserError
from resim.exchange.encoders import load_encoders
from resim.report.detection import detection, opened
from resim.report.metrics import curves, probe_curves
from resim.report.page import WIDE_PX, Folded, Part, Picture, Pictures, Section, Text, write_report
from resim.report.runs import RunFiles, read_runs
from resim.report.tables import probe_tables, what_ran
from resim.report.verdict import verdict_parts
from resim.similarity.blocks import default_levels, heat_blocks
from resim.similarity.feature_maps import Photograph, feature_maps, load_photograph
from resim.similarity.sheets import HEAT_NOTE
from resim.similarity.similarity import Region
from resim.views.folder import find_images

SHOWN_IMAGES, SHOWN_LEVELS, MAX_SIDE = 3, 2, 640
_TRIES = 20  # images that are opened until as many as are shown can be decoded


def report(runs: Sequence[Path], out: Path, *, images: Sequence[Path] = (), seed: int = 0) -> Path:
    """Write one page about some runs.

    Args:
        runs: folders of pre-trainings, fine-tunings and comparisons.
        out: the .html file.
        images: folders or files for the similarity maps; none: the images that the first pre-training saw, if they are
            still there.
        seed: by which images are drawn.

    Returns:
        `out`.

    Raises:
        UserError: a folder that holds no run, damaged files, images that cannot be read, or a page above 5 MB.
    """
    read = read_runs(runs)
    title = read[0].name if len(read) == 1 else f"{len(read)} runs"
    sections = [
        Section(title="Verdict", parts=tuple(verdict_parts(read))),
        Section(title="What ran", parts=(*what_ran(read), *_configs(read))),
        Section(title="Curves", parts=tuple(curves(read))),
        Section(title="Matched windows", parts=tuple(_windows(read))),
        Section(title="Similarity before and after", parts=tuple(_similarity(read, images, seed))),
        Section(title="Probes", parts=(*probe_tables(read), *_predictions(read), *probe_curves(read))),
        Section(title="Detection", parts=tuple(detection(read))),
    ]
    return write_report(out, f"resim: {title}", sections)


def _configs(runs: Sequence[RunFiles]) -> list[Part]:
    return [
        Folded(title=f"{run.name}: the whole configuration", text=json.dumps(run.config, indent=2))
        for run in runs
        if run.config
    ]


def _windows(runs: Sequence[RunFiles]) -> list[Part]:
    parts: list[Part] = []
    for run in runs:
        drawn = [path for path in run.pictures if path.stem.startswith("epoch_")]
        if run.kind == "pretrain" and drawn:
            told = f"{run.name}, {drawn[-1].stem.replace('_', ' ')}: two views an image, and what the loss compares"
            parts.append(Picture(picture=opened(drawn[-1]), caption=told, least_px=WIDE_PX))
    return parts


def _predictions(runs: Sequence[RunFiles]) -> list[Part]:
    """The sheets that `resim probe` drew of predicted label maps."""
    parts: list[Part] = []
    for run in runs:
        path = run.path / "probe_segmentation.png"
        if path.exists():
            caption = f"{run.name}: test images, their labels, and what frozen features predict"
            parts.append(Picture(picture=opened(path), caption=caption, least_px=WIDE_PX))
    return parts


def _similarity(runs: Sequence[RunFiles], images: Sequence[Path], seed: int) -> list[Part]:
    """Heat maps of the first image's centre over a few images, by the untrained network and by every run's last."""
    trained = [run for run in runs if run.kind == "pretrain" and run.recipe is not None]
    having = [(run, path) for run in trained if (path := run.checkpoint) is not None]
    if not having:
        return []
    first = having[0][0]
    sources = list(images) or [Path(str(source)) for source in first.config.get("data", {}).get("sources", ())]
    try:
        photographs = _drawn(sources, seed)
    except UserError:
        if images:
            raise
        return [Text(text=f"The images of {first.name} are not where they were: name others with --images.", note=True)]
    if not photographs:
        return []
    loaded = load_encoders(["random", *(str(path) for _, path in having)])  # random: what the first run started from
    names = ["untrained", *(run.name for run, _ in having)]
    networks = [dataclasses.replace(network, name=name) for network, name in zip(loaded, names, strict=True)]
    left_out: list[Part] = []
    shown, maps = [], []
    for network in networks:
        try:
            maps.append([feature_maps(network.encoder, photograph) for photograph in photographs])
            shown.append(network)
        except UserError as error:  # a run that came to nothing has a report all the same
            left_out.append(Text(text=f"{network.name} is left out: {error}.", note=True))
    if not shown:
        return left_out
    levels = default_levels(shown)
    # C4 is there where a network has seen no level, and must be shown
    levels = (levels[0], "C4") if levels[SHOWN_LEVELS:] and "C4" in levels else levels[:SHOWN_LEVELS]
    region = central_box(photographs[0].width, photographs[0].height)
    blocks = heat_blocks(photographs, shown, maps, levels, region, panel_px=320)
    told = "The region is the middle of the first image, and the images were drawn at random: nothing was picked."
    return [Text(text=told), *left_out, *(Pictures(block=block) for block in blocks), Text(text=HEAT_NOTE, note=True)]


def _drawn(sources: Sequence[Path], seed: int) -> list[Photograph]:
    """A few images drawn at random; those that cannot be decoded are passed over."""
    paths = find_images(sources)
    found: list[Photograph] = []
    for i in np.random.default_rng([6, seed]).permutation(len(paths))[:_TRIES]:
        with contextlib.suppress(UserError):
            found.append(load_photograph(paths[int(i)], MAX_SIDE))
        if len(found) == SHOWN_IMAGES:
            break
    return found


def central_box(width: int, height: int, side: int = 48) -> Region:
    """A box of at most `side` px in the middle of an image: (x0, y0, x1, y1)."""
    across, down = min(side, width) / 2, min(side, height) / 2
    return width / 2 - across, height / 2 - down, width / 2 + across, height / 2 + down
