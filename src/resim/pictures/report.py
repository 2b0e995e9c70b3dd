"""The report of runs: what ran, curves, matched windows, similarity before and after, probes, detections.

What a run's folder holds is shown, what it does not hold is left out.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from resim.errors import UserError
from resim.pictures.curves import COLOURS, column, metric_panels, series_colours
from resim.pictures.feature_maps import feature_maps, load_photograph
from resim.pictures.networks import load_network, untrained_network
from resim.pictures.report_curves import INK, Line, diagram
from resim.pictures.report_page import (
    Curves,
    Folded,
    Heading,
    Part,
    Picture,
    Pictures,
    Section,
    Text,
    write_report,
)
from resim.pictures.report_runs import RunFiles, read_runs
from resim.pictures.report_tables import comparison_tables, detection_tables, probe_tables, what_ran
from resim.pictures.similarity import Region
from resim.pictures.similarity_blocks import HEAT_NOTE, default_levels, heat_blocks
from resim.views.folder import find_images

SHOWN_IMAGES, SHOWN_LEVELS, MAX_SIDE = 3, 2, 640
_WIDE_PX = 900  # a sheet of many pictures is moved sideways on a screen narrower than this


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
        Section(title="What ran", parts=(*what_ran(read), *_configs(read))),
        Section(title="Curves", parts=tuple(curves(read))),
        Section(title="Matched windows", parts=tuple(_windows(read))),
        Section(title="Similarity before and after", parts=tuple(_similarity(read, images, seed))),
        Section(title="Probes", parts=(*probe_tables(read), *_probe_curves(read))),
        Section(title="Detection", parts=tuple(_detection(read))),
        *(Section(title=f"Comparison: {run.name}", parts=tuple(_comparison(run))) for run in read if run.comparison),
    ]
    return write_report(out, f"resim: {title}", sections)


def curves(runs: Sequence[RunFiles]) -> list[Part]:
    """Diagrams of each run, and before them those of several pre-trainings together."""
    trained = [run for run in runs if run.metrics]
    parts: list[Part] = []
    together = [run for run in trained if run.kind == "pretrain"]
    if len(together) > 1:
        parts += [Heading(text="Pre-trainings together"), _together(together)]
    for run in trained:
        if len(trained) > 1:
            parts.append(Heading(text=run.name))
        parts.append(_of_one(run))
    return parts


def _of_one(run: RunFiles) -> Curves:
    panels = metric_panels(list(dict.fromkeys(key for record in run.metrics for key in record)))
    colours = series_colours(panels)
    drawn = []
    for panel in panels:
        lines = []
        for key in panel.keys:
            group, _, name = key.rpartition("/")
            label = f"{name}, correspondence" if group == "correspondence" else name if group else ""
            colour = INK if name == "total" else colours.get(name, COLOURS[0])
            x, y = _series(run, key)
            if len(y):
                dashed = group == "correspondence"
                lines.append(Line(label=label, x=x, y=panel.factor * y, colour=colour, dashed=dashed))
        drawn.append(diagram(panel.title, panel.unit, _x_label(run), lines, from_zero=panel.from_zero))
    return Curves(panels=tuple(drawn))


def _together(runs: Sequence[RunFiles]) -> Curves:
    """A diagram for each loss and accuracy that two runs have, a line a run."""
    keys = dict.fromkeys(key for run in runs for record in run.metrics for key in record)
    wanted = [key for key in keys if key.startswith(("loss/", "accuracy/", "correspondence/"))]
    drawn = []
    for key in wanted:
        lines = []
        for i, run in enumerate(runs):
            x, y = _series(run, key)
            if len(y):
                factor = 1.0 if key.startswith("loss/") else 100.0
                lines.append(Line(label=run.name, x=x, y=factor * y, colour=COLOURS[i % len(COLOURS)]))
        if len(lines) > 1:
            group, _, name = key.partition("/")
            unit = "nats" if group == "loss" else "right answers (%)"
            drawn.append(diagram(f"{group}, {name}", unit, _x_label(runs[0]), lines, from_zero=group != "loss"))
    return Curves(panels=tuple(drawn))


def _series(run: RunFiles, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Where a key was logged, and what."""
    logged = [record for record in run.metrics if key in record]
    x_key = "epoch_progress" if any("epoch_progress" in record for record in run.metrics) else "step"
    return column(logged, x_key), column(logged, key)


def _x_label(run: RunFiles) -> str:
    return "epoch" if any("epoch_progress" in record for record in run.metrics) else "step"


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
            told = f"{run.name}, epoch {int(drawn[-1].stem.removeprefix('epoch_')):d}: views and the windows compared"
            parts.append(Picture(picture=_opened(drawn[-1]), caption=told, least_px=_WIDE_PX))
    return parts


def _similarity(runs: Sequence[RunFiles], images: Sequence[Path], seed: int) -> list[Part]:
    """Heat maps of the first image's centre over a few images, by the untrained network and by every run's last."""
    trained = [run for run in runs if run.kind == "pretrain" and run.recipe is not None]
    having = [(run, path) for run in trained if (path := run.checkpoint) is not None]
    if not having:
        return []
    first = having[0][0]
    sources = list(images) or [Path(str(source)) for source in first.config.get("data", {}).get("sources", ())]
    if not images and not all(source.exists() for source in sources):
        return [Text(text=f"The images of {first.name} are not where they were: name others with --images.", note=True)]
    paths = find_images(sources)
    drawn = np.random.default_rng([6, seed]).permutation(len(paths))[:SHOWN_IMAGES]
    photographs = [load_photograph(paths[int(i)], MAX_SIDE) for i in drawn]
    assert first.recipe is not None
    networks = [
        untrained_network(first.recipe),
        *(dataclasses.replace(load_network(path), name=run.name) for run, path in having),
    ]
    levels = default_levels(networks)[:SHOWN_LEVELS]
    maps = [[feature_maps(network.encoder, photograph) for photograph in photographs] for network in networks]
    region = central_box(photographs[0].width, photographs[0].height)
    blocks = heat_blocks(photographs, networks, maps, levels, region, panel_px=320)
    told = "The region is the middle of the first image, and the images were drawn at random: nothing was picked."
    return [Text(text=told), *(Pictures(block=block) for block in blocks), Text(text=HEAT_NOTE, note=True)]


def central_box(width: int, height: int, side: int = 48) -> Region:
    """A box of at most `side` px in the middle of an image: (x0, y0, x1, y1)."""
    across, down = min(side, width) / 2, min(side, height) / 2
    return width / 2 - across, height / 2 - down, width / 2 + across, height / 2 + down


def _probe_curves(runs: Sequence[RunFiles]) -> list[Part]:
    """What was measured while the runs went on: shares by name, over the steps."""
    drawn = []
    for run in runs:
        flat = [(line.get("step"), _flat(line)) for line in run.probes]
        steps = [float(step) for step, _ in flat if isinstance(step, int | float)]
        if len(steps) != len(flat) or not flat:
            continue
        names = dict.fromkeys(name for _, values in flat for name in values if name.endswith(("accuracy", "top1")))
        lines = [
            Line(
                label=name.rpartition("/")[0] or name,
                x=np.array(steps),
                y=np.array([100 * values.get(name, math.nan) for _, values in flat]),
                colour=COLOURS[i % len(COLOURS)],
                dashed=i >= len(COLOURS),
            )
            for i, name in enumerate(names)
        ]
        if lines:
            drawn.append(diagram(f"{run.name}, while it ran", "right answers (%)", "step", lines, from_zero=True))
    return [Curves(panels=tuple(drawn))] if drawn else []


def _flat(value: object, path: str = "") -> dict[str, float]:
    """Every number within an object, by its path."""
    if isinstance(value, dict):
        found: dict[str, float] = {}
        for name, inner in value.items():
            found |= _flat(inner, f"{path}/{name}" if path else str(name))
        return found
    return {path: float(value)} if isinstance(value, int | float) and not isinstance(value, bool) else {}


def _detection(runs: Sequence[RunFiles]) -> list[Part]:
    parts = detection_tables(runs)
    lines: dict[str, list[Line]] = {}
    for i, run in enumerate(run for run in runs if len(run.scores) > 1):
        for kind in dict.fromkeys(kind for line in run.scores for kind in line.get("scores", {})):
            points = [(line["step"], line["scores"][kind].get("AP")) for line in run.scores if kind in line["scores"]]
            x, y = (np.array([math.nan if p[j] is None else p[j] for p in points], dtype=float) for j in (0, 1))
            lines.setdefault(kind, []).append(Line(label=run.name, x=x, y=100 * y, colour=COLOURS[i % len(COLOURS)]))
    if lines:
        drawn = [diagram(f"{kind} AP", "AP (%)", "step", of_kind, from_zero=True) for kind, of_kind in lines.items()]
        parts.append(Curves(panels=tuple(drawn)))
    for run in runs:
        path = run.path / "pictures" / "detections.png"
        if path.exists():
            told = f"{run.name}: the truth, and what was detected"
            parts.append(Picture(picture=_opened(path), caption=told, least_px=_WIDE_PX))
    return parts


def _comparison(run: RunFiles) -> list[Part]:
    pictures = [Picture(picture=_opened(p), caption=p.stem, least_px=_WIDE_PX) for p in run.pictures]
    return [*comparison_tables(run), *pictures]


def _opened(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except OSError as error:
        raise UserError(f"{path}: is no picture ({error})") from None
