"""A run's metrics as one picture: losses, accuracies, learning rate, throughput."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resim.draw.metric_panels import (
    COLOURS,
    CORRESPONDENCE,
    CORRESPONDENCE_CHANCE,
    MetricPanel,
    chance_lines,
    metric_panels,
    reference_lines,
    series_colours,
)
from resim.errors import UserError
from resim.reading import parse_json, read_json
from resim.runs.checkpoints import write_atomically
from resim.runs.lines import REMEDY

FEW_POINTS = 40  # shorter curves have markers: a single point, or one between two NaNs, is visible


def draw_curves(metrics: Path, out: Path, *, title: str = "") -> Path:
    """Draw the curves of a run: raw values faint, their running mean over a fiftieth of the run solid.

    Panels, each omitted if the file has none of its keys: losses ("loss/total", "loss/instance", "loss/P4", ...);
    accuracy on images ("accuracy/instance") and on regions ("accuracy/P4", ...); "correspondence/..." of the probes;
    "lr"; "gradient/norm"; "images_per_second"; "data_wait", the fraction of the time spent waiting for images.
    Fractions are drawn in percent. Dashed lines mark chance, computed from the config.json next to the metrics; for the
    correspondence, read from the probes.jsonl next to the metrics, chance is the stored value.

    The x axis counts completed steps, for a detector as for a pre-training: "step" counts from 0, so the record of step
    s is drawn at s + 1. A file without steps is drawn over "epoch_progress". If a resumed run logs a step twice, the
    later record counts. Missing and non-finite values leave a gap.

    Args:
        metrics: a metrics.jsonl, one JSON object per line; a truncated last line is skipped.
        out: the PNG to write, replaced atomically; its folder is created if it does not exist.
        title: one line above the panels.

    Returns:
        `out`.

    Raises:
        UserError: the file is missing, contains no metric, or contains a broken line before its last.
    """
    records = read_curves(metrics) + _correspondence_records(metrics.with_name("probes.jsonl"))
    x, x_label = steps_done(records)
    records, x = [record for record, step in zip(records, x, strict=True) if np.isfinite(step)], x[np.isfinite(x)]
    references = [*reference_lines(_read_config(metrics.with_name("config.json"))), *chance_lines(records)]
    panels = metric_panels(list(dict.fromkeys(key for record in records for key in record)), references)
    if not panels:
        raise UserError(f"{metrics}: no metrics to draw; expected lines with 'step' and keys such as 'loss/total'")
    num_upper = _num_upper(panels)
    figure = Figure(
        figsize=(13 if num_upper < 3 else 5.4 * num_upper, 7.5 if len(panels) > num_upper else 4.5),
        dpi=110,
        layout="constrained",
    )
    if title:
        figure.suptitle(title, fontsize=14, fontweight="bold", x=0.01, ha="left")
    colours = series_colours(panels)
    for axes, panel in zip(_add_axes(figure, len(panels), num_upper), panels, strict=True):
        _draw_panel(axes, panel, x, records, colours)
        axes.set_xlabel(x_label)
    return _save(figure, out)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of the finite values within a centred window, truncated at the ends; NaN stays NaN.

    Args:
        values: (n,) float.
        window: in points, 1 or more; an even window counts as the next odd one.

    Returns:
        (n,) float.
    """
    finite = np.isfinite(values)
    sums = np.concatenate(([0.0], np.cumsum(np.where(finite, values, 0.0))))
    counts = np.concatenate(([0], np.cumsum(finite)))
    centres = np.arange(len(values))
    first, last = np.maximum(centres - window // 2, 0), np.minimum(centres + window // 2 + 1, len(values))
    means = (sums[last] - sums[first]) / np.maximum(counts[last] - counts[first], 1)
    return np.where(finite, means, np.nan)


def read_curves(metrics: Path) -> list[dict[str, object]]:
    """Read the file's objects in the order of their steps; objects of the same step are merged.

    Raises:
        UserError: the file is missing, contains no metrics, or contains a broken line before its last.
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
            record = parse_json(line)
        except ValueError as error:
            if number == len(lines):
                break  # the run was interrupted while it wrote this line
            raise UserError(f"{metrics}: line {number} is not JSON; is this a metrics.jsonl? {REMEDY}") from error
        if not isinstance(record, dict):
            raise UserError(f"{metrics}: line {number} is not a JSON object; is this a metrics.jsonl?")
        step = _number(record.get("step", record.get("epoch_progress")))
        if step is not None:
            merged.setdefault(step, {}).update(record)
    if not merged:
        raise UserError(f"{metrics}: the file contains no metrics yet; wait until the run has logged a step")
    return [merged[step] for step in sorted(merged)]


def steps_done(records: Sequence[dict[str, object]]) -> tuple[np.ndarray, str]:
    """The x values of a curve and the label of the x axis.

    Returns:
        (n,) float, the steps completed after each record ("step", which counts from 0, plus 1), or "epoch_progress"
        if no record has a step; and the label, with the number of steps per epoch if it is known.
    """
    steps, epochs = column(records, "step"), column(records, "epoch_progress")
    if not np.isfinite(steps).any():
        return epochs, "epochs"
    known = np.isfinite(steps) & np.isfinite(epochs) & (epochs > 0)
    if not known.any():
        return steps + 1, "steps"
    last = np.flatnonzero(known)[-1]
    return steps + 1, f"steps ({steps[last] / epochs[last]:.4g} per epoch)"


def _read_config(path: Path) -> dict[str, object]:
    """A run's config.json; empty if there is none, for example next to the metrics of another program."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _correspondence_records(path: Path) -> list[dict[str, object]]:
    """Correspondence readings of a run's probes.jsonl; its "step" counts completed steps and is reduced by 1 here."""
    if not path.exists() or not path.stat().st_size:
        return []
    records = []
    for record in read_curves(path):
        values = {
            key: value
            for key, value in record.items()
            if key.partition("/")[0] in (CORRESPONDENCE, CORRESPONDENCE_CHANCE)
        }
        step = _number(record.get("step"))
        if values and step is not None:
            records.append(values | {"step": step - 1})
    return records


def _num_upper(panels: Sequence[MetricPanel]) -> int:
    """Number of panels in the upper row: the large ones, and at least two."""
    return min(len(panels), max(2, sum(panel.large for panel in panels)))


def _add_axes(figure: Figure, num_panels: int, num_upper: int) -> list[Axes]:
    """Add the axes of the panels: a tall upper row and a flat lower row, both as wide as the figure."""
    num_lower = num_panels - num_upper
    width = math.lcm(num_upper, max(num_lower, 1))
    grid = figure.add_gridspec(2 if num_lower else 1, width, height_ratios=(1.5, 1) if num_lower else (1,))
    spans = [(0, i, width // num_upper) for i in range(num_upper)]
    spans += [(1, i, width // num_lower) for i in range(num_lower)]
    return [figure.add_subplot(grid[row, i * span : (i + 1) * span]) for row, i, span in spans]


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
        if num_lost := int((~np.isfinite(values)).sum()):
            label += f" ({num_lost} not finite)"
        (line,) = axes.plot(x[logged], mean, color=colour, linewidth=1.8, marker=marker, markersize=3.5)
        line.set_label(label)
    for reference in panel.references:
        axes.axhline(
            panel.factor * reference.value,
            color=_colour(reference.key, colours),
            linestyle="--",
            linewidth=1.3,
            alpha=0.9,
            label=panel.reference_label(reference),
        )
    axes.set_title(panel.title, fontsize=12, loc="left", fontweight="bold")
    axes.set_ylabel(panel.unit)
    axes.grid(visible=True, color="#e4e4e7", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if panel.from_zero:
        axes.set_ylim(bottom=0)
    if len(panel.keys) > 1 or panel.references:
        axes.legend(frameon=False, fontsize=9)


def _colour(key: str, colours: dict[str, str]) -> str:
    return colours.get(key.rpartition("/")[2], COLOURS[0])


def column(records: Sequence[dict[str, object]], key: str) -> np.ndarray:
    """A key's value in every record: (n,) float, NaN where it is missing or not finite."""
    numbers = [_number(record.get(key)) for record in records]
    return np.array([np.nan if number is None else number for number in numbers], dtype=np.float64)


def _number(value: object) -> float | None:
    try:
        number = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:  # an integer of hundreds of digits
        return None
    return number if math.isfinite(number) else None


def _save(figure: Figure, out: Path) -> Path:
    write_atomically(out, lambda file: figure.savefig(file, format="png"))
    return out
