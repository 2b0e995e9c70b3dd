"""A run's metrics as one picture: losses, accuracies, learning rate, throughput."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resim.errors import UserError

# Okabe and Ito's colour-blind-safe colours; black is for the total. Yellow is left out: too faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
TOTAL_COLOUR = "#1a1a1a"
FEW_POINTS = 40  # below this single points are marked, so that one or a gap between NaNs is seen


@dataclass(frozen=True, kw_only=True)
class MetricPanel:
    """One diagram of a run, and the keys of its curves."""

    title: str
    unit: str  # the y axis
    keys: list[str]
    factor: float = 1.0  # from the unit of the file to that of the axis
    from_zero: bool = False
    smooth: bool = True


def draw_curves(metrics: Path, out: Path, *, title: str = "") -> Path:
    """Draw the curves of a run: raw values faint, their running mean over a fiftieth of the run strong.

    Panels, each left out if the file has no such key: losses ("loss/total", "loss/instance", "loss/P4", ...);
    accuracies ("accuracy/...") and "correspondence/...", in the file as fractions and drawn in percent; "lr";
    "images_per_second"; "data_wait", the fraction of the time spent waiting for images, drawn in percent.
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
    records = read_records(metrics)
    x, x_label = steps_done(records)
    records, x = [record for record, at in zip(records, x, strict=True) if np.isfinite(at)], x[np.isfinite(x)]
    panels = metric_panels(list(dict.fromkeys(key for record in records for key in record)))
    if not panels:
        raise UserError(f"{metrics}: no metrics to draw; expected lines with 'step' and keys such as 'loss/total'")
    figure = Figure(figsize=(13, 7.5 if len(panels) > 2 else 4.5), dpi=110, layout="constrained")
    if title:
        figure.suptitle(title, fontsize=14, fontweight="bold", x=0.01, ha="left")
    colours = series_colours(panels)
    for axes, panel in zip(_places(figure, len(panels)), panels, strict=True):
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


def metric_panels(keys: Sequence[str]) -> list[MetricPanel]:
    """The panels that have something to show; levels stand in the order of the file."""

    def under(prefix: str) -> list[str]:
        names = [key for key in keys if key.startswith(f"{prefix}/")]
        return sorted(names, key=lambda key: (key != f"{prefix}/total", key != f"{prefix}/instance"))

    panels = (
        MetricPanel(
            title="Losses",
            unit="InfoNCE loss (nats)" if "loss/instance" in keys else "loss",  # a detector has other losses
            keys=under("loss"),
        ),
        MetricPanel(
            title="Accuracies",
            unit="right answers (%)",
            keys=[*under("accuracy"), *under("correspondence")],
            factor=100.0,
            from_zero=True,
        ),
        MetricPanel(title="Learning rate", unit="learning rate", keys=["lr"], from_zero=True, smooth=False),
        MetricPanel(title="Throughput", unit="images / s", keys=["images_per_second"], from_zero=True),
        MetricPanel(
            title="Waiting for images",
            unit="share of the time (%)",
            keys=["data_wait"],
            factor=100.0,
            from_zero=True,
        ),
    )
    return [panel for panel in panels if any(key in keys for key in panel.keys)]


def series_colours(panels: Sequence[MetricPanel]) -> dict[str, str]:
    """One colour a name, the same in all panels: P4's loss, accuracy and correspondence belong together."""
    names = dict.fromkeys(key.split("/")[-1] for panel in panels for key in panel.keys if "/" in key)
    others = [name for name in names if name != "total"]
    return {"total": TOTAL_COLOUR} | {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(others)}


def _places(figure: Figure, count: int) -> list[Axes]:
    """Two panels above, large; the others below, in one row."""
    above, below = min(count, 2), max(count - 2, 0)
    grid = figure.add_gridspec(2 if below else 1, 6, height_ratios=(1.5, 1) if below else (1,))
    places = [(0, i, 6 // above) for i in range(above)] + [(1, i, 6 // below) for i in range(below)]
    return [figure.add_subplot(grid[row, i * span : (i + 1) * span]) for row, i, span in places]


def _draw_panel(
    axes: Axes, panel: MetricPanel, x: np.ndarray, records: Sequence[dict[str, object]], colours: dict[str, str]
) -> None:
    for key in panel.keys:
        logged = np.array([key in record for record in records])
        values = panel.factor * column(records, key)[logged]
        group, _, name = key.rpartition("/")
        colour = colours.get(name, COLOURS[0])
        marker = "" if len(values) >= FEW_POINTS else "s" if group == "correspondence" else "o"
        if panel.smooth:
            axes.plot(x[logged], values, color=colour, alpha=0.25, linewidth=0.8, marker=marker, markersize=4)
        mean = running_mean(values, max(1, len(values) // 50) if panel.smooth else 1)
        label = f"{name}, correspondence" if group == "correspondence" else name
        if lost := int((~np.isfinite(values)).sum()):
            label += f" ({lost} not finite)"
        (line,) = axes.plot(x[logged], mean, color=colour, linewidth=1.8, marker=marker, markersize=3.5)
        line.set_label(label)
        line.set_linestyle("--" if group == "correspondence" else "-")
    axes.set_title(panel.title, fontsize=12, loc="left", fontweight="bold")
    axes.set_ylabel(panel.unit)
    axes.grid(visible=True, color="#e4e4e7", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if panel.from_zero:
        axes.set_ylim(bottom=0)
    if len(panel.keys) > 1:
        axes.legend(frameon=False, fontsize=9)


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
