"""The curves of runs as diagrams of a report: of each run, of several together, and of probes while a run went on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from resim.draw.curves import column, steps_done
from resim.draw.metric_panels import COLOURS, marks_of, metric_panels, series_colours, stored_marks
from resim.report.curves import INK, Line, diagram, level_line
from resim.report.page import Curves, Heading, Part
from resim.report.runs import Json, RunFiles

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

_LEVELS = {"_chance": "chance", "_constant": "constant answer"}
"""Ends of the names of what a measure is read against, drawn as a dashed line in its diagram."""


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
    marks = [*marks_of(run.config), *stored_marks(run.metrics)]
    panels = metric_panels(list(dict.fromkeys(key for record in run.metrics for key in record)), marks)
    colours = series_colours(panels)
    drawn = []
    for panel in panels:
        lines = []
        for key in panel.keys:
            name = key.rpartition("/")[2]
            colour = INK if name == "total" else colours.get(name, COLOURS[0])
            x, y = _series(run, key)
            if len(y):
                lines.append(Line(label=panel.label(key), x=x, y=panel.factor * y, colour=colour))
        for mark in panel.marks:
            colour = colours.get(mark.key.rpartition("/")[2], COLOURS[0])
            lines.append(level_line(panel.mark_label(mark), panel.factor * mark.value, lines, colour))
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
            having = [run for run in runs if any(key in record for record in run.metrics)]
            chances = {mark.value for run in having for mark in marks_of(run.config) if mark.key == key}
            if len(chances) == 1:  # runs of other queues or batches have others
                (chance,) = chances
                lines.append(level_line(f"chance ({100 * chance:.2g} %)", 100 * chance, lines, INK))
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
            if measure.endswith(tuple(_LEVELS)):
                continue
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
            of_measure += _levels(lines, measure, of_measure)
            panels.append(diagram(title, unit, "steps done", of_measure, from_zero=factor != 1))
        if panels:
            parts += [Heading(text=f"{run.name}, while it ran"), Curves(panels=tuple(panels))]
    return parts


def _levels(records: Sequence[Json], measure: str, lines: Sequence[Line]) -> list[Line]:
    """Chance, or the score of a constant answer, as stored with a measure; one line where all its levels share it."""
    found: dict[str, tuple[str, float]] = {}
    for record in records:
        for key, value in record.items():
            stored, _, level = key.partition("/")
            word = next((word for end, word in _LEVELS.items() if stored == f"{measure}{end}"), "")
            if word and math.isfinite(_finite(value)):
                found[level] = word, 100 * _finite(value)
    if len(set(found.values())) == 1:
        ((word, value),) = set(found.values())
        return [level_line(f"{word} ({value:.2g} %)", value, lines, INK)]
    colours = {line.label: line.colour for line in lines}
    return [
        level_line(f"{word}, {level} ({value:.2g} %)", value, lines, colours.get(level, INK))
        for level, (word, value) in found.items()
    ]


def _finite(value: object) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan
