"""The section on training curves: diagrams of each run, and of several pre-trainings together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from resim.draw.curves import column, steps_done
from resim.draw.metric_panels import COLOURS, chance_lines, metric_panels, reference_lines, series_colours
from resim.report.diagram import INK, Line, diagram, reference_line
from resim.report.page import Curves, Heading, Part
from resim.report.run_files import RunFiles

_SHARED = {
    "loss": ("Loss", "nats", 1.0),
    "accuracy": ("Accuracy", "positive ranked first (%)", 100.0),
    "correspondence": ("Region correspondence", "windows matched correctly (%)", 100.0),
}
"""Metrics that are compared over runs, by the name before the slash: title, unit, factor."""


def curves(runs: Sequence[RunFiles]) -> list[Part]:
    """Diagrams of several pre-trainings together, then diagrams of each run."""
    logged = [run for run in runs if run.metrics]
    parts: list[Part] = []
    pretrainings = [run for run in logged if run.kind == "pretrain"]
    if len(pretrainings) > 1:
        parts += [Heading(text="All pre-trainings"), _shared_diagrams(pretrainings)]
    for run in logged:
        if len(logged) > 1:
            parts.append(Heading(text=run.name))
        parts.append(_run_diagrams(run))
    return parts


def _run_diagrams(run: RunFiles) -> Curves:
    references = [*reference_lines(run.config), *chance_lines(run.metrics)]
    panels = metric_panels(list(dict.fromkeys(key for record in run.metrics for key in record)), references)
    colours = series_colours(panels)
    diagrams = []
    for panel in panels:
        lines = []
        for key in panel.keys:
            name = key.rpartition("/")[2]
            colour = INK if name == "total" else colours.get(name, COLOURS[0])
            x, y = _series(run, key)
            if len(y):
                lines.append(Line(label=panel.label(key), x=x, y=panel.factor * y, colour=colour))
        for reference in panel.references:
            colour = colours.get(reference.key.rpartition("/")[2], COLOURS[0])
            label = panel.reference_label(reference)
            lines.append(reference_line(label, panel.factor * reference.value, lines, colour))
        x_label = steps_done(run.metrics)[1]
        diagrams.append(diagram(panel.title, panel.unit, x_label, lines, from_zero=panel.from_zero))
    return Curves(panels=tuple(diagrams))


def _shared_diagrams(runs: Sequence[RunFiles]) -> Curves:
    """A diagram for each loss and accuracy that two runs or more have, a curve per run."""
    keys = dict.fromkeys(key for run in runs for record in run.metrics for key in record)
    diagrams = []
    for key in keys:
        group, _, name = key.partition("/")
        if group not in _SHARED or not name:
            continue
        title, unit, factor = _SHARED[group]
        lines = []
        for i, run in enumerate(runs):
            x, y = _series(run, key)
            if len(y):
                lines.append(Line(label=run.name, x=x, y=factor * y, colour=COLOURS[i % len(COLOURS)]))
        if len(lines) > 1:
            logged = [run for run in runs if any(key in record for record in run.metrics)]
            chances = {line.value for run in logged for line in reference_lines(run.config) if line.key == key}
            if len(chances) == 1:  # chance differs between queue and batch sizes
                (chance,) = chances
                lines.append(reference_line(f"chance ({100 * chance:.2g} %)", 100 * chance, lines, INK))
            diagrams.append(diagram(f"{title}, {name}", unit, "steps", lines, from_zero=group != "loss"))
    return Curves(panels=tuple(diagrams))


def _series(run: RunFiles, key: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps at which a metric was logged, and its values."""
    logged = [record for record in run.metrics if key in record]
    return steps_done(logged)[0], column(logged, key)
