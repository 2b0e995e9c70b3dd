"""The section on probes: tables of every probe.json, and readings during training.

Fractions are shown in percent. A field that a file does not have is left empty, so files of all versions can be read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from resim.draw.metric_panels import COLOURS
from resim.probes.verdict import verdicts
from resim.report.cells import interval, number, percent
from resim.report.diagram import INK, Line, diagram, reference_line
from resim.report.page import WIDE_PX, Curves, Heading, Part, Picture, Table, Text
from resim.report.run_files import Json, RunFiles, read_picture

_PROBES = {"knn": "kNN", "linear": "linear", "linear-sgd": "linear, SGD"}
_READINGS = {
    "knn": ("kNN", "top-1 accuracy (%)", 100.0),
    "correspondence": ("Region correspondence", "windows matched correctly (%)", 100.0),
    "median_error_px": ("Median error of the correspondence", "px of the view", 1.0),
    "segmentation": ("Linear segmentation", "mIoU (%)", 100.0),
    "foreground_iou": ("Linear segmentation, foreground", "IoU (%)", 100.0),
    "rank": ("Effective rank of the features (RankMe)", "effective rank", 1.0),
    "spread": ("Spread of the features", "0: collapsed, 1: uniform", 1.0),
    "alignment": ("Alignment of two views", "mean squared distance", 1.0),
    "uniformity": ("Uniformity of the features", "log mean Gaussian potential", 1.0),
    "age": ("Age of the oldest key in the queue", "steps", 1.0),
}
"""By the name before the slash in probes.jsonl: title, unit, and the factor to this unit."""

_REFERENCES = {"_chance": "chance", "_constant": "constant prediction"}
"""By the suffix of a reading's name: the label of the reference value, drawn as a dashed line."""


def probes(runs: Sequence[RunFiles]) -> list[Part]:
    """Tables, pictures of predictions, and readings during training."""
    return [*_tables(runs), *_predictions(runs), *_curves(runs)]


def _tables(runs: Sequence[RunFiles]) -> list[Part]:
    """The tables of every probe.json: classes, correspondence, label maps, health; then a sentence on each probe."""
    parts: list[Part] = []
    for run in runs:
        networks = [n for n in run.probe.get("networks", ()) if isinstance(n, dict)]
        source = (run.probe.get("test") or {}).get("source", "an unknown source")
        candidates = (_classes(networks), _correspondence(networks), *_label_maps(networks), _health(networks))
        tables = [table for table in candidates if table.rows]
        parts += [Text(text=f"{run.name}: probes on the test images of {source}."), *tables] if tables else []
        parts += [Text(text=sentence) for sentence in verdicts(run.probe)] if tables else []
    return parts


def _predictions(runs: Sequence[RunFiles]) -> list[Part]:
    """The sheets of predicted label maps that `resim probe` writes."""
    parts: list[Part] = []
    for run in runs:
        path = run.path / "probe_segmentation.png"
        if path.exists():
            caption = f"{run.name}: test images, ground truth, and segmentation with frozen features"
            parts.append(Picture(picture=read_picture(path), caption=caption, min_px=WIDE_PX))
    return parts


def _classes(networks: Sequence[Json]) -> Table:
    """Classification accuracy: a row for each probe and level, a column for each network."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for network, path, value in _leaves(networks, "top1"):
        probe = _PROBES.get(path[0], path[0]) + (f", k = {value['k']}" if "k" in value else "")
        row = (probe, path[-1], percent(value.get("chance")), str(value.get("n", "")))
        rows.setdefault(row, {})[network] = f"{percent(value.get('top1'))} {interval(value)}"
    caption = "Classification: top-1 accuracy, % [95 % bootstrap interval over images]"
    return _by_network(caption, ("probe", "level", "chance (%)", "n"), rows)


def _correspondence(networks: Sequence[Json]) -> Table:
    """Region correspondence: a row for each change and level, a column for each network."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for network, path, value in _leaves(networks, "accuracy"):
        row = (path[-2] if len(path) > 1 else "", path[-1], percent(value.get("chance")), str(value.get("windows", "")))
        accuracy = f"{percent(value.get('accuracy'))} {interval(value)}"
        rows.setdefault(row, {})[network] = f"{accuracy} {number(value.get('median_error_px'), '.0f')} px"
    caption = "Region correspondence: windows matched correctly, % [95 % bootstrap interval over images]; median error"
    return _by_network(caption, ("change", "level", "chance (%)", "windows"), rows)


def _label_maps(networks: Sequence[Json]) -> list[Table]:
    """Segmentation: a table for each measure, a row for each probe and level, a column for each network."""
    measures = {"miou": "mIoU", "mean_accuracy": "mean accuracy", "foreground_iou": "foreground IoU"}
    tables = []
    for measure, title in measures.items():
        rows: dict[tuple[str, ...], dict[str, str]] = {}
        for network, path, value in _leaves(networks, measure):
            probe = "linear" if path[0] == "segmentation" else ", ".join(path[:-1])
            ends = {"interval": value.get(f"{measure}_interval")}
            row = (probe, path[-1], str(value.get("n", "")))
            rows.setdefault(row, {})[network] = f"{percent(value.get(measure))} {interval(ends)}"
        caption = f"Segmentation: {title}, % [95 % bootstrap interval over images]"
        tables.append(_by_network(caption, ("probe", "level", "n"), rows))
    return tables


def _by_network(caption: str, columns: tuple[str, ...], rows: dict[tuple[str, ...], dict[str, str]]) -> Table:
    names = dict.fromkeys(name for cells in rows.values() for name in cells)
    filled = tuple((*row, *(cells.get(name, "") for name in names)) for row, cells in rows.items())
    return Table(columns=(*columns, *names), rows=filled, words=2, caption=caption)


def _health(networks: Sequence[Json]) -> Table:
    rows = []
    for network, path, value in _leaves(networks, "rank"):
        cells = [number(value.get(key), ".2f") for key in ("rank", "spread", "alignment", "uniformity")]
        rows.append((network, path[-1], *cells, str(value.get("n", ""))))
    columns = ("network", "level", "effective rank (RankMe)", "spread", "alignment", "uniformity", "n")
    return Table(columns=columns, rows=tuple(rows), words=2, caption="Health of the features")


def _leaves(networks: Sequence[Json], key: str) -> Iterator[tuple[str, list[str], Json]]:
    """Every object in the networks' scores that has `key`, with the name of the network and the path of keys."""

    def walk(value: Any, path: list[str]) -> Iterator[tuple[list[str], Json]]:
        if isinstance(value, dict):
            if key in value:
                yield path, value
                return
            for name, inner in value.items():
                yield from walk(inner, [*path, str(name)])

    for network in networks:
        for path, value in walk(network.get("scores", {}), []):
            yield str(network.get("name", "")), path or [""], value


def _curves(runs: Sequence[RunFiles]) -> list[Part]:
    """Readings of probes during training: a diagram for each measure, a curve for each level."""
    parts: list[Part] = []
    for run in runs:
        records = [record for record in run.probes if isinstance(record.get("step"), int | float)]
        diagrams = []
        for measure, lines in _measure_lines(records).items():
            title, unit, factor = _READINGS.get(measure, (measure, measure, 1.0))
            lines += _reference_lines(records, measure, lines)
            diagrams.append(diagram(title, unit, "steps", lines, from_zero=factor != 1))
        if diagrams:
            parts += [Heading(text=f"{run.name}, during training"), Curves(panels=tuple(diagrams))]
    return parts


def _measure_lines(records: Sequence[Json]) -> dict[str, list[Line]]:
    """For each measure the curves of its levels."""
    x = np.array([float(record["step"]) for record in records])
    lines: dict[str, list[Line]] = {}
    for key in dict.fromkeys(key for record in records for key in record if "/" in key):
        measure, _, level = key.partition("/")
        if measure.endswith(tuple(_REFERENCES)):
            continue
        if measure == "queue":  # rank and spread of the queue are drawn with those of the levels
            measure, level = level, "queue"
        y = np.array([_finite(record.get(key)) for record in records]) * _READINGS.get(measure, ("", "", 1.0))[2]
        known = np.isfinite(y)
        if known.any():
            others = lines.setdefault(measure, [])
            colour = INK if level == "queue" else COLOURS[len(others) % len(COLOURS)]
            dashed = len(others) >= len(COLOURS) and colour != INK
            others.append(Line(label=level, x=x[known], y=y[known], colour=colour, dashed=dashed))
    return lines


def _reference_lines(records: Sequence[Json], measure: str, lines: Sequence[Line]) -> list[Line]:
    """Chance, or the score of a constant prediction, as stored with a measure; one line if all levels share it."""
    references: dict[str, tuple[str, float]] = {}
    for record in records:
        for key, value in record.items():
            stored, _, level = key.partition("/")
            label = next((label for suffix, label in _REFERENCES.items() if stored == f"{measure}{suffix}"), "")
            if label and math.isfinite(_finite(value)):
                references[level] = label, 100 * _finite(value)
    if len(set(references.values())) == 1:
        ((label, value),) = set(references.values())
        return [reference_line(f"{label} ({value:.2g} %)", value, lines, INK)]
    colours = {line.label: line.colour for line in lines}
    return [
        reference_line(f"{label}, {level} ({value:.2g} %)", value, lines, colours.get(level, INK))
        for level, (label, value) in references.items()
    ]


def _finite(value: object) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan
