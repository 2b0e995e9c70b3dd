"""Detectors in a report: their scores, AP over the steps, comparisons, and detections beside the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resim.draw.metric_panels import COLOURS
from resim.errors import UserError
from resim.report.curves import Line, diagram
from resim.report.page import WIDE_PX, Curves, Heading, Part, Picture, Table, Text
from resim.report.runs import Json, RunFiles
from resim.report.tables import percent


def detection(runs: Sequence[RunFiles]) -> list[Part]:
    """Everything that the runs hold of detectors; empty if they hold nothing."""
    parts = [*_scores(runs), *_curves(runs)]
    for run in runs:
        if run.comparison:
            parts += [Heading(text=f"Comparison {run.name}"), *_comparison(run.comparison)]
    for run in runs:
        for path in run.pictures:
            if path.stem == "detections":
                told = f"{run.name}: the truth, and what was detected"
                parts.append(Picture(picture=opened(path), caption=told, least_px=WIDE_PX))
    return parts


def opened(path: Path) -> Image.Image:
    """A picture that a run drew.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except OSError as error:
        raise UserError(f"{path}: is no picture ({error})") from None


def _scores(runs: Sequence[RunFiles]) -> list[Part]:
    """The last evaluation of every detector, a table for each kind of score."""
    last = [(run, run.scores[-1]) for run in runs if run.scores]
    parts: list[Part] = []
    for kind in dict.fromkeys(kind for _, line in last for kind in line.get("scores", {})):
        having = [(run, line, line["scores"][kind]) for run, line in last if kind in line.get("scores", {})]
        names = list(dict.fromkeys(name for _, _, values in having for name in values))
        rows = []
        for run, line, values in having:
            cells = (_start(run.config), line.get("step", ""), line.get("images", ""))
            rows.append((run.name, *map(str, cells), *(percent(values.get(name)) for name in names)))
        columns = ("run", "begins with", "step", "images", *(f"{name} %" for name in names))
        parts.append(Table(columns=columns, rows=tuple(rows), words=2, caption=f"{kind}: the last evaluation"))
    return parts


def _curves(runs: Sequence[RunFiles]) -> list[Part]:
    """AP over the steps of runs that were evaluated more than once."""
    lines: dict[str, list[Line]] = {}
    for i, run in enumerate(run for run in runs if len(run.scores) > 1):
        for kind in dict.fromkeys(kind for line in run.scores for kind in line.get("scores", {})):
            having = [line for line in run.scores if kind in line.get("scores", {})]
            x = np.array([_number(line.get("step")) for line in having])
            y = np.array([_number(line["scores"][kind].get("AP")) for line in having])
            lines.setdefault(kind, []).append(Line(label=run.name, x=x, y=100 * y, colour=COLOURS[i % len(COLOURS)]))
    drawn = [diagram(f"{kind} AP", "AP (%)", "steps done", of_kind, from_zero=True) for kind, of_kind in lines.items()]
    return [Curves(panels=tuple(drawn))] if drawn else []


def _comparison(found: Json) -> list[Part]:
    """What `resim compare` found: mean and spread over seeds, and differences with their intervals."""
    scores = found.get("scores") or {}
    columns = list(dict.fromkeys((kind, name) for kinds in scores.values() for kind in kinds for name in kinds[kind]))
    rows = []
    for start, kinds in scores.items():
        rows.append((start, *(_mean(kinds.get(kind, {}).get(name, [])) for kind, name in columns)))
    seeds = len(found.get("seeds") or ())
    over = f"mean and standard deviation over {seeds} seeds" if seeds > 1 else "one seed: its spread is not known"
    over += f"; frozen: {found['frozen']}" if found.get("frozen") else ""
    parts: list[Part] = []
    if rows:
        heads = ("begins with", *(f"{kind} {name} %" for kind, name in columns))
        parts.append(Table(columns=heads, rows=tuple(rows), caption=f"Scores, {over}"))
    differences = tuple(_difference(one) for one in found.get("differences") or ())
    if differences:
        heads = ("COCO's box AP", "points", "95 % interval", "")
        what = "images and seeds" if seeds > 1 else "images alone"
        parts.append(Table(columns=heads, rows=differences, caption=f"Differences; the intervals are over {what}"))
    note = (
        "These detectors are torchvision's: their scores are not directly comparable with published ones of Detectron2."
    )
    return [*parts, Text(text=note, note=True)] if parts else []


def _start(config: Json) -> str:
    """What a fine-tuning began with, and what of it stayed frozen."""
    recipe = config.get("recipe")
    detector = recipe.get("detector") if isinstance(recipe, dict) else None
    freeze = detector.get("freeze", "none") if isinstance(detector, dict) else "none"
    return str(config.get("init", "")) + (f" ({freeze} frozen)" if freeze != "none" else "")


def _difference(one: Json) -> tuple[str, ...]:
    value, low, high = (100 * _number(one.get(key)) for key in ("value", "low", "high"))
    sure = "" if low > 0 or high < 0 else "within the noise"
    return f"{one.get('first')} minus {one.get('second')}", f"{value:+.2f}", f"[{low:+.2f}, {high:+.2f}]", sure


def _mean(values: Sequence[Any]) -> str:
    """The mean of shares in percent, with their standard deviation if there are several."""
    known = [100 * float(value) for value in values if isinstance(value, int | float)]
    if len(known) < 2:
        return f"{known[0]:.2f}" if known else ""
    return f"{np.mean(known):.2f} ± {np.std(known, ddof=1):.2f}"


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
