"""A run's metrics as one picture: losses, accuracies, learning rate, throughput."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resim.draw.metric_panels import (
    CHANCE,
    COLOURS,
    PROBED,
    MetricPanel,
    marks_of,
    metric_panels,
    series_colours,
    stored_marks,
)
from resim.errors import UserError

FEW_POINTS = 40  # below this single points are marked, so that one or a gap between NaNs is seen


def draw_curves(metrics: Path, out: Path, *, title: str = "") -> Path:
    """Draw the curves of a run: raw values faint, their running mean over a fiftieth of the run strong.

    Panels, each left out if the file has no such key: losses ("loss/total", "loss/instance", "loss/P4", ...); accuracy
    on images ("accuracy/instance") and on regions ("accuracy/P4", ...); "correspondence/...", of the probes; "lr";
    "gradient/norm"; "images_per_second"; "data_wait", the fraction of the time spent waiting for images. Fractions are
    drawn in percent. Dashed lines mark chance, worked out from the config.json beside the metrics, and for the
    correspondence the chance that was stored with it. The probes.jsonl beside the metrics is read for it.

    The x axis is the steps done, for a detector as for a pre-training: a line's "step" counts from 0, so that it is
    drawn at one more. Of a file without steps it is "epoch_progress". Where a resumed run wrote a step twice the later
    line counts. Missing and non-finite values leave a gap.

    Args:
        metrics: a metrics.jsonl, one JSON object a line; a last line that was cut off is skipped.
        out: the PNG to write, replaced in one go; its folder is made if need be.
        title: one line above the panels.

    Returns:
        `out`.

    Raises:
        UserError: the file is missing, has no line with a metric, or has a broken line before its last.
    """
    records = read_records(metrics) + _probed(metrics.with_name("probes.jsonl"))
    x, x_label = steps_done(records)
    records, x = [record for record, at in zip(records, x, strict=True) if np.isfinite(at)], x[np.isfinite(x)]
    marks = [*marks_of(_config(metrics.with_name("config.json"))), *stored_marks(records)]
    panels = metric_panels(list(dict.fromkeys(key for record in records for key in record)), marks)
    if not panels:
        raise UserError(f"{metrics}: no metrics to draw; expected lines with 'step' and keys such as 'loss/total'")
    above = _num_above(panels)
    figure = Figure(
        figsize=(13 if above < 3 else 5.4 * above, 7.5 if len(panels) > above else 4.5), dpi=110, layout="constrained"
    )
    if title:
        figure.suptitle(title, fontsize=14, fontweight="bold", x=0.01, ha="left")
    colours = series_colours(panels)
    for axes, panel in zip(_places(figure, len(panels), above), panels, strict=True):
        _draw_panel(axes, panel, x, records, colours)
        axes.set_xlabel(x_label)
    return _save(figure, out)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of the finite values within a centred window, cut off at the ends; NaN stays NaN.

    Args:
        values: (n,) float.
        window: in points, 1 or more; an even one counts as the next odd one.

    Returns:
        (n,) float.
    """
    finite = np.isfinite(values)
    sums = np.concatenate(([0.0], np.cumsum(np.where(finite, values, 0.0))))
    counts = np.concatenate(([0], np.cumsum(finite)))
    at = np.arange(len(values))
    first, last = np.maximum(at - window // 2, 0), np.minimum(at + window // 2 + 1, len(values))
    means = (sums[last] - sums[first]) / np.maximum(counts[last] - counts[first], 1)
    return np.where(finite, means, np.nan)


def read_records(metrics: Path) -> list[dict[str, object]]:
    """The file's objects in the order of their steps, those of the same step made one.

    Raises:
        UserError: the file is missing, holds no metrics, or has a broken line before its last.
    """
    try:
        lines = metrics.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{metrics}: cannot read the metrics: {error.strerror}") from error
    merged: dict[float, dict[str, object]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break  # the run was stopped while it wrote
            raise UserError(f"{metrics}: line {number} is not JSON; is this a metrics.jsonl?") from error
        if not isinstance(record, dict):
            raise UserError(f"{metrics}: line {number} is not a JSON object; is this a metrics.jsonl?")
        step = _number(record.get("step", record.get("epoch_progress")))
        if step is not None:
            merged.setdefault(step, {}).update(record)
    if not merged:
        raise UserError(f"{metrics}: the file holds no metrics yet; let the run log a step first")
    return [merged[step] for step in sorted(merged)]


def steps_done(records: Sequence[dict[str, object]]) -> tuple[np.ndarray, str]:
    """(n,) float: the steps done after each record, from its "step", which counts from 0; and the label of the axis.

    The label says how many steps an epoch has, where "epoch_progress" tells. Records without steps: their epochs.
    """
    steps, epochs = column(records, "step"), column(records, "epoch_progress")
    if not np.isfinite(steps).any():
        return epochs, "epochs"
    known = np.isfinite(steps) & np.isfinite(epochs) & (epochs > 0)
    if not known.any():
        return steps + 1, "steps done"
    last = np.flatnonzero(known)[-1]
    return steps + 1, f"steps done (an epoch has {steps[last] / epochs[last]:.4g})"


def _config(path: Path) -> dict[str, object]:
    """A run's config.json; empty where there is none, as beside metrics of another program."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _probed(path: Path) -> list[dict[str, object]]:
    """The correspondence of a run's probes, whose "step" counts the steps done and here, as in metrics, from 0."""
    if not path.exists() or not path.stat().st_size:
        return []
    kept = []
    for record in read_records(path):
        values = {key: value for key, value in record.items() if key.partition("/")[0] in (PROBED, CHANCE)}
        step = _number(record.get("step"))
        if values and step is not None:
            kept.append(values | {"step": step - 1})
    return kept


def _num_above(panels: Sequence[MetricPanel]) -> int:
    """Panels of the upper row: the large ones, and at least two."""
    return min(len(panels), max(2, sum(panel.large for panel in panels)))


def _places(figure: Figure, count: int, above: int) -> list[Axes]:
    """Some panels above, large; the others below, in one row."""
    below = count - above
    width = math.lcm(above, max(below, 1))
    grid = figure.add_gridspec(2 if below else 1, width, height_ratios=(1.5, 1) if below else (1,))
    places = [(0, i, width // above) for i in range(above)] + [(1, i, width // below) for i in range(below)]
    return [figure.add_subplot(grid[row, i * span : (i + 1) * span]) for row, i, span in places]


def _draw_panel(
    axes: Axes, panel: MetricPanel, x: np.ndarray, records: Sequence[dict[str, object]], colours: dict[str, str]
) -> None:
    for key in panel.keys:
        logged = np.array([key in record for record in records])
        values = panel.factor * column(records, key)[logged]
        colour = _colour(key, colours)
        marker = "" if len(values) >= FEW_POINTS else "o"
        if panel.smooth:
            axes.plot(x[logged], values, color=colour, alpha=0.25, linewidth=0.8, marker=marker, markersize=4)
        mean = running_mean(values, max(1, len(values) // 50) if panel.smooth else 1)
        label = panel.label(key) or key.rpartition("/")[2]
        if lost := int((~np.isfinite(values)).sum()):
            label += f" ({lost} not finite)"
        (line,) = axes.plot(x[logged], mean, color=colour, linewidth=1.8, marker=marker, markersize=3.5)
        line.set_label(label)
    for mark in panel.marks:
        colour = _colour(mark.key, colours)
        label = panel.mark_label(mark)
        axes.axhline(panel.factor * mark.value, color=colour, linestyle="--", linewidth=1.3, alpha=0.9, label=label)
    axes.set_title(panel.title, fontsize=12, loc="left", fontweight="bold")
    axes.set_ylabel(panel.unit)
    axes.grid(visible=True, color="#e4e4e7", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if panel.from_zero:
        axes.set_ylim(bottom=0)
    if len(panel.keys) > 1 or panel.marks:
        axes.legend(frameon=False, fontsize=9)


def _colour(key: str, colours: dict[str, str]) -> str:
    return colours.get(key.rpartition("/")[2], COLOURS[0])


def column(records: Sequence[dict[str, object]], key: str) -> np.ndarray:
    """(n,) float: a key's value in every record, NaN where it is missing or not finite."""
    numbers = [_number(record.get(key)) for record in records]
    return np.array([np.nan if number is None else number for number in numbers], dtype=np.float64)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else None


def _save(figure: Figure, out: Path) -> Path:
    """Write the PNG beside its place, then move it there: a reader never sees half a picture."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, format="png")
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return out
