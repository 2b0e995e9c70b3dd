"""What was measured, as tables for a person and as plain data for a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from resim.probes.accuracy import Accuracy
from resim.probes.correspondence import Correspondence
from resim.probes.health import Health, collapse
from resim.probes.labels import ProbeImages
from resim.probes.pairs import CHANGES
from resim.probes.suite import Path, Score, difference, nested

Results = Mapping[str, Mapping[Path, Score]]
"""Scores of each network, by its name, in the order in which they are shown."""

_CLASSES = {"knn": "kNN", "linear": "linear", "linear-sgd": "linear, SGD"}


def tables(results: Results) -> list[Table]:
    """Every table that has a row: classes, regions, health, and differences from the first network."""
    made = [_classes(results), _regions(results), _health(results), _differences(results)]
    return [table for table in made if table.row_count]


def warnings(results: Results) -> list[str]:
    """What a reader must know: a k that was cut, a fit that did not converge, vectors that have collapsed."""
    told = []
    for name, scores in results.items():
        for path, score in scores.items():
            if path[0] == "linear" and not score.details["converged"]:
                told.append(
                    f"{name}: the linear probe stopped at a gradient of {score.details['gradient']:.1g} after "
                    f"{score.details['evaluations']} evaluations, before it had converged"
                )
            if isinstance(score.value, Health) and path[-1] == "global":
                wrong = collapse(score.value, what=f"{name}: the global vectors")
                told += [wrong] if wrong else []
    return told


def to_json(results: Results, about: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each network's description and its scores, and its differences from the first network."""
    first = next(iter(results.values()), {})
    return [
        {"name": name, **about[name], "scores": nested(scores)}
        | ({} if scores is first else {"less_first": _less(scores, first)})
        for name, scores in results.items()
    ]


def describe(images: ProbeImages) -> dict[str, Any]:
    """What images they are."""
    return {
        "source": images.source,
        "kind": images.kind,
        "images": len(images),
        "classes": len(images.classes),
        "hash": images.fingerprint(),
    }


def _less(scores: Mapping[Path, Score], first: Mapping[Path, Score]) -> dict[str, Any]:
    found = {}
    for path, score in scores.items():
        apart = difference(score, first[path]) if path in first else None
        if apart is not None:
            found["/".join(path)] = {"difference": apart[0], "interval": list(apart[1:])}
    return found


def _table(title: str, *columns: str, numbers: Sequence[str] = ()) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=True)
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _classes(results: Results) -> Table:
    table = _table(
        "Classes: top-1 accuracy [95 % bootstrap interval over test images]",
        "network", "probe", "level",
        numbers=("top-1 %", "interval", "top-5 %", "chance %", "n test", "n train"),
    )  # fmt: skip
    for name, scores in results.items():
        for path, score in scores.items():
            value = score.value
            if isinstance(value, Accuracy):
                kind = _CLASSES[path[0]] + (f", k {score.details['k']}" if path[0] == "knn" else "")
                cells = [_percent(value.share), _interval(value.interval())]
                cells += [_percent(float(value.top5.mean())), _percent(value.chance)]
                cells += [str(len(value.top1)), str(score.details["n_train"])]
                table.add_row(name, kind, path[1], *cells)
    return table


def _regions(results: Results) -> Table:
    table = _table(
        "Regions: share found again in the other view [95 % bootstrap interval over images], median error",
        "network", "level", "change",
        numbers=("found %", "interval", "chance %", "within px", "median px", "windows", "images"),
    )  # fmt: skip
    for name, scores in results.items():
        rows = [(path[2], CHANGES.index(path[1]), path[1], score.value) for path, score in scores.items() if path[2:]]
        for level, _, change, value in sorted(rows, key=lambda row: row[:2]):
            if isinstance(value, Correspondence):
                cells = [_percent(value.accuracy), _interval(value.interval()), _percent(value.chance)]
                cells += [f"{value.radius:g}", f"{value.median_error:.1f}"]
                table.add_row(name, level, change, *cells, str(int(value.windows.sum())), str(len(value.windows)))
    return table


def _health(results: Results) -> Table:
    table = _table(
        "Health: RankMe; spread (1: vectors point everywhere, 0: all the same)",
        "network", "level",
        numbers=("rank", "of", "spread", "least", "dead", "alignment", "uniformity", "images"),
    )  # fmt: skip
    for name, scores in results.items():
        for path, score in scores.items():
            value = score.value
            if isinstance(value, Health):
                aligned = "" if value.alignment is None else f"{value.alignment:.3f}"
                cells = [f"{value.rank:.1f}", str(value.directions), f"{value.spread:.3f}", f"{value.least_std:.3f}"]
                table.add_row(name, path[1], *cells, str(value.dead), aligned, f"{value.uniformity:.2f}", str(value.n))
    return table


def _differences(results: Results) -> Table:
    first_name = next(iter(results), "")
    table = _table(
        f"Differences from {first_name}, points [95 % bootstrap interval over the same images]",
        "network", "measure", "level",
        numbers=("points", "interval", ""),
    )  # fmt: skip
    for name, scores in list(results.items())[1:]:
        for path, score in scores.items():
            apart = difference(score, results[first_name][path]) if path in results[first_name] else None
            if apart is not None:
                points, low, high = apart
                sure = "" if low > 0 or high < 0 else "within the noise"
                measure = _CLASSES.get(path[0], path[1])
                table.add_row(name, measure, path[-1], f"{100 * points:+.1f}", _interval((low, high), sign=True), sure)
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _interval(bounds: tuple[float, float], *, sign: bool = False) -> str:
    low, high = (f"{100 * bound:+.1f}" if sign else f"{100 * bound:.1f}" for bound in bounds)
    return f"[{low}, {high}]"
