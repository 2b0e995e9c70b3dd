"""Numbers of runs as tables of a report: what ran, and what probes found.

Shares are shown in percent. A field that a file does not have is left empty, so that files of other versions are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from resim.probes.verdict import verdicts
from resim.report.page import Facts, Part, Table, Text
from resim.report.runs import Json, RunFiles

_PACKAGES = ("resim", "torch", "torchvision", "python")
_LINEAR = {"knn": "kNN", "linear": "linear", "linear-sgd": "linear, SGD"}


def what_ran(runs: Sequence[RunFiles]) -> list[Part]:
    """A table of all runs, and for each its command, versions and git state."""
    rows = []
    for run in runs:
        recipe = run.config.get("recipe") or run.comparison.get("recipe") or {}
        settings = run.config.get("run") or {}
        model = recipe.get("model") or recipe.get("detector") or {}
        levels = " ".join(str(level).partition(":")[0] for level in model.get("levels", ()))
        last = run.metrics[-1] if run.metrics else {}
        device = " ".join(str(settings[key]) for key in ("device", "precision") if key in settings)
        seed = (recipe.get("optim") or recipe.get("tune") or {}).get("seed", "")
        steps = f"{int(_float(last['step'])) + 1:,}" if "step" in last else ""
        cells = (recipe.get("name", ""), model.get("backbone", ""), levels, steps, seed)
        rows.append((run.name, run.kind, *map(str, cells), device, str(run.resumed or "")))
    columns = ("run", "kind", "recipe", "backbone", "levels", "steps done", "seed", "device", "times resumed")
    parts: list[Part] = [Table(columns=columns, rows=tuple(rows), words=5)]
    parts += [Facts(rows=tuple(_provenance(run))) for run in runs if run.config]
    return parts


def _provenance(run: RunFiles) -> Iterator[tuple[str, str]]:
    yield "run", str(run.path)
    start = run.config.get("init") or (run.config.get("run") or {}).get("start_from")
    if start:
        yield "begins with", str(start)
    data, versions, git = (run.config.get(key) or {} for key in ("data", "versions", "git"))
    if run.config.get("command"):
        yield "command", " ".join(map(str, run.config["command"]))
    if isinstance(data, dict) and data.get("sources"):
        count = f"{data['images']:,} images of " if isinstance(data.get("images"), int) else ""
        yield "data", f"{count}{', '.join(map(str, data['sources']))} (hash {data.get('hash', 'unknown')})"
    told = [f"{name} {versions[name]}" for name in _PACKAGES if name in versions]
    if told:
        yield "versions", ", ".join(told)
    for name, state in git.items() if isinstance(git, dict) else ():
        if isinstance(state, dict) and state.get("commit"):
            changed = ", files changed since" if state.get("changed") else ""
            yield f"git, {name.replace('_', ' ')}", f"{str(state['commit'])[:12]}{changed}"


def probe_tables(runs: Sequence[RunFiles]) -> list[Part]:
    """The tables of every probe.json: classes, regions, label maps, health; each with what it was measured on."""
    parts: list[Part] = []
    for run in runs:
        networks = [n for n in run.probe.get("networks", ()) if isinstance(n, dict)]
        source = (run.probe.get("test") or {}).get("source", "an unknown source")
        made = (_classes(networks), _regions(networks), *_label_maps(networks), _health(networks))
        tables = [table for table in made if table.rows]
        parts += [Text(text=f"Measured for {run.name} on images of {source}."), *tables] if tables else []
        parts += [Text(text=sentence) for sentence in verdicts(run.probe)] if tables else []
    return parts


def _classes(networks: Sequence[Json]) -> Table:
    """A row for each probe and level, a column for each network."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for network, path, value in _leaves(networks, "top1"):
        kind = _LINEAR.get(path[0], path[0]) + (f", k {value['k']}" if "k" in value else "")
        row = (kind, path[-1], percent(value.get("chance")), str(value.get("n", "")))
        rows.setdefault(row, {})[network] = f"{percent(value.get('top1'))} {interval(value)}"
    caption = "Classes: top-1 accuracy, % [95 % bootstrap interval over images]"
    return _by_network(caption, ("probe", "level", "chance %", "n"), rows)


def _regions(networks: Sequence[Json]) -> Table:
    """A row for each change and level, a column for each network."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for network, path, value in _leaves(networks, "accuracy"):
        row = (path[-2] if len(path) > 1 else "", path[-1], percent(value.get("chance")), str(value.get("windows", "")))
        told = f"{percent(value.get('accuracy'))} {interval(value)}"
        rows.setdefault(row, {})[network] = f"{told} {number(value.get('median_error_px'), '.0f')} px"
    caption = "Regions found again in another view, % [95 % bootstrap interval over images], and the median error in px"
    return _by_network(caption, ("change", "level", "chance %", "windows"), rows)


def _label_maps(networks: Sequence[Json]) -> list[Table]:
    """A table for each measure: a row for each probe and level, a column for each network."""
    measures = {"miou": "mIoU", "mean_accuracy": "mean accuracy", "foreground_iou": "foreground IoU"}
    tables = []
    for measure, title in measures.items():
        rows: dict[tuple[str, ...], dict[str, str]] = {}
        for network, path, value in _leaves(networks, measure):
            probe = "linear" if path[0] == "segmentation" else ", ".join(path[:-1])
            ends = {"interval": value.get(f"{measure}_interval")}
            row = (probe, path[-1], str(value.get("n", "")))
            rows.setdefault(row, {})[network] = f"{percent(value.get(measure))} {interval(ends)}"
        caption = f"Label maps: {title}, % [95 % bootstrap interval over images]"
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
    columns = ("network", "level", "rank (RankMe)", "spread", "alignment", "uniformity", "n")
    return Table(columns=columns, rows=tuple(rows), words=2, caption="Health of the features")


def _leaves(networks: Sequence[Json], key: str) -> Iterator[tuple[str, list[str], Json]]:
    """Every object within the networks' scores that has `key`, with the network's name and its path."""

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


def percent(value: Any) -> str:
    """A share in percent; empty if it is none."""
    return number(None if value is None or not isinstance(value, int | float) else 100 * value, ".1f")


def number(value: Any, form: str) -> str:
    """A finite number in a format; empty if it is none."""
    return format(value, form) if isinstance(value, int | float) and math.isfinite(value) else ""


def interval(value: Json) -> str:
    """A 95 % interval of a share, in percent."""
    ends = value.get("interval")
    return f"[{percent(ends[0])}, {percent(ends[1])}]" if isinstance(ends, list) and len(ends) == 2 else ""


def _float(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
