"""The curves of runs as diagrams of a report: of each run, of several together, and of probes while a run went on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from resim.pictures.curves import COLOURS, column, metric_panels, series_colours, steps_done
from resim.pictures.report_curves import INK, Line, diagram
from resim.pictures.report_page import Curves, Heading, Part
from resim.pictures.report_runs import RunFiles

_MEASURES = {
    "knn": ("kNN", "top-1 (%)", 100.0),
    "correspondence": ("Regions found again in the other view", "found (%)", 100.0),
    "median_error_px": ("Median error of the regions", "px of the view", 1.0),
    "segmentation": ("Linear segmentation", "mIoU (%)", 100.0),
    "foreground_iou": ("Linear segmentation, foreground", "IoU (%)", 100.0),
    "rank": ("Rank of the vectors (RankMe)", "directions", 1.0),
    "spread": ("Spread of the vectors", "0: all the same, 1: spread", 1.0),
    "alignment": ("Alignment of two views", "squared distance", 1.0),
    "uniformity": ("Uniformity", "log of the mean kernel", 1.0),
    "age": ("Age of the oldest key in the queue", "steps", 1.0),
}
"""By the name before the slash in probes.jsonl: the title, the unit, and what the number is multiplied by."""


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
        label = steps_done(run.metrics)[1]
        drawn.append(diagram(panel.title, panel.unit, label, lines, from_zero=panel.from_zero))
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
            drawn.append(diagram(f"{group}, {name}", unit, "steps done", lines, from_zero=group != "loss"))
    return Curves(panels=tuple(drawn))


def _series(run: RunFiles, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Where a key was logged, and what."""
    logged = [record for record in run.metrics if key in record]
    return steps_done(logged)[0], column(logged, key)


def probe_curves(runs: Sequence[RunFiles]) -> list[Part]:
    """What probes measured while the runs went on: a diagram for each measure, a line for each level."""
    parts: list[Part] = []
    for run in runs:
        lines = [line for line in run.probes if isinstance(line.get("step"), int | float)]
        x = np.array([float(line["step"]) for line in lines])
        drawn: dict[str, list[Line]] = {}
        for key in dict.fromkeys(key for line in lines for key in line if "/" in key):
            measure, _, level = key.partition("/")
            if measure == "queue":  # its rank and spread stand beside those of the levels
                measure, level = level, "queue"
            y = np.array([_finite(line.get(key)) for line in lines]) * _MEASURES.get(measure, ("", "", 1.0))[2]
            known = np.isfinite(y)
            if known.any():
                lines_of = drawn.setdefault(measure, [])
                colour = INK if level == "queue" else COLOURS[len(lines_of) % len(COLOURS)]
                dashed = len(lines_of) >= len(COLOURS) and colour != INK
                lines_of.append(Line(label=level, x=x[known], y=y[known], colour=colour, dashed=dashed))
        panels = []
        for measure, of_measure in drawn.items():
            title, unit, factor = _MEASURES.get(measure, (measure, measure, 1.0))
            panels.append(diagram(title, unit, "steps done", of_measure, from_zero=factor != 1))
        if panels:
            parts += [Heading(text=f"{run.name}, while it ran"), Curves(panels=tuple(panels))]
    return parts


def _finite(value: object) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan
