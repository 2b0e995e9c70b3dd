"""The section on detection: scores of detectors, AP over steps, comparisons, and pictures of detections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from resim.draw.metric_panels import COLOURS
from resim.report.cells import percent
from resim.report.diagram import Line, diagram
from resim.report.page import WIDE_PX, Curves, Heading, Part, Picture, Table, Text
from resim.report.run_files import Json, RunFiles, read_picture

_NOTE = "The detectors are torchvision's; their scores are not directly comparable with published scores of Detectron2."


def detection(runs: Sequence[RunFiles]) -> list[Part]:
    """Scores, curves, comparisons and pictures of the runs' detectors; empty if there are none."""
    parts = [*_last_scores(runs), *_curves(runs)]
    for run in runs:
        if run.comparison:
            parts += [Heading(text=f"Comparison {run.name}"), *_comparison(run.comparison)]
    for run in runs:
        for path in run.pictures:
            if path.stem == "detections":
                caption = f"{run.name}: ground truth and detections"
                parts.append(Picture(picture=read_picture(path), caption=caption, min_px=WIDE_PX))
    return parts


def _last_scores(runs: Sequence[RunFiles]) -> list[Part]:
    """The last evaluation of every detector, a table for each kind of score."""
    last = [(run, run.scores[-1]) for run in runs if run.scores]
    parts: list[Part] = []
    for kind in dict.fromkeys(kind for _, line in last for kind in line.get("scores", {})):
        scored = [(run, line, line["scores"][kind]) for run, line in last if kind in line.get("scores", {})]
        names = list(dict.fromkeys(name for _, _, values in scored for name in values))
        rows = []
        for run, line, values in scored:
            cells = (_initialisation(run.config), line.get("step", ""), line.get("images", ""))
            rows.append((run.name, *map(str, cells), *(percent(values.get(name)) for name in names)))
        columns = ("run", "initialisation", "step", "images", *(f"{name} (%)" for name in names))
        parts.append(Table(columns=columns, rows=tuple(rows), words=2, caption=f"{kind}: last evaluation"))
    return parts


def _curves(runs: Sequence[RunFiles]) -> list[Part]:
    """AP over steps of the runs that were evaluated more than once."""
    lines: dict[str, list[Line]] = {}
    for i, run in enumerate(run for run in runs if len(run.scores) > 1):
        for kind in dict.fromkeys(kind for line in run.scores for kind in line.get("scores", {})):
            evaluations = [line for line in run.scores if kind in line.get("scores", {})]
            x = np.array([_number(line.get("step")) for line in evaluations])
            y = np.array([_number(line["scores"][kind].get("AP")) for line in evaluations])
            lines.setdefault(kind, []).append(Line(label=run.name, x=x, y=100 * y, colour=COLOURS[i % len(COLOURS)]))
    diagrams = [
        diagram(f"{kind} AP", "AP (%)", "steps", kind_lines, from_zero=True) for kind, kind_lines in lines.items()
    ]
    return [Curves(panels=tuple(diagrams))] if diagrams else []


def _comparison(comparison: Json) -> list[Part]:
    """The results of `resim compare`: mean and deviation over seeds, and differences with their intervals."""
    scores = comparison.get("scores") or {}
    columns = list(dict.fromkeys((kind, name) for kinds in scores.values() for kind in kinds for name in kinds[kind]))
    rows = []
    for initialisation, kinds in scores.items():
        rows.append((initialisation, *(_mean(kinds.get(kind, {}).get(name, [])) for kind, name in columns)))
    num_seeds = len(comparison.get("seeds") or ())
    caption = f"mean ± standard deviation over {num_seeds} seeds" if num_seeds > 1 else "one seed, without deviation"
    caption += f"; frozen: {comparison['frozen']}" if comparison.get("frozen") else ""
    parts: list[Part] = []
    if rows:
        headings = ("initialisation", *(f"{kind} {name} (%)" for kind, name in columns))
        parts.append(Table(columns=headings, rows=tuple(rows), caption=f"Scores: {caption}"))
    differences = tuple(_difference(one) for one in comparison.get("differences") or ())
    if differences:
        headings = ("COCO box AP", "points", "95 % interval", "")
        units = "images and seeds" if num_seeds > 1 else "images only"
        caption = f"Differences, with bootstrap intervals over {units}"
        parts.append(Table(columns=headings, rows=differences, caption=caption))
    return [*parts, Text(text=_NOTE, note=True)] if parts else []


def _initialisation(config: Json) -> str:
    """The initial weights of a fine-tuning, and which part of it is frozen."""
    recipe = config.get("recipe")
    detector = recipe.get("detector") if isinstance(recipe, dict) else None
    freeze = detector.get("freeze", "none") if isinstance(detector, dict) else "none"
    return str(config.get("init", "")) + (f" ({freeze} frozen)" if freeze != "none" else "")


def _difference(one: Json) -> tuple[str, ...]:
    value, low, high = (100 * _number(one.get(key)) for key in ("value", "low", "high"))
    note = "" if low > 0 or high < 0 else "within noise"
    return f"{one.get('first')} minus {one.get('second')}", f"{value:+.2f}", f"[{low:+.2f}, {high:+.2f}]", note


def _mean(values: Sequence[Any]) -> str:
    """The mean of fractions in percent, with the standard deviation if there are several."""
    known = [100 * float(value) for value in values if isinstance(value, int | float)]
    if len(known) < 2:
        return f"{known[0]:.2f}" if known else ""
    return f"{np.mean(known):.2f} ± {np.std(known, ddof=1):.2f}"


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
