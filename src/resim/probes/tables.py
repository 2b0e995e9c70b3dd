"""Results of probes as tables for the terminal and as plain data for probe.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from resim.probes.accuracy import Accuracy
from resim.probes.config import ScorePath
from resim.probes.correspondence import Correspondence
from resim.probes.health import Health, collapse_warning
from resim.probes.label_maps import LabelMaps
from resim.probes.labels import ProbeImages
from resim.probes.pairs import CHANGES
from resim.probes.segmentation_scores import Segmentation
from resim.probes.suite import Score, difference, nested
from resim.probes.verdict import is_untrained, probe_verdict, verdicts
from resim.runs.provenance import describe_run

Results = Mapping[str, Mapping[ScorePath, Score]]
"""Scores of each network by its name, in the order of the tables."""

_PROBES = {"knn": "kNN", "linear": "linear", "linear-sgd": "linear, SGD"}


def tables(results: Results, reference: str | None = None) -> list[Table]:
    """The tables that have rows: classification, correspondence, segmentation, health, differences between networks.

    Args:
        results: scores of each network.
        reference: a network, such as the untrained one, from which differences are shown in addition to the first.
    """
    candidates = [_classification(results), _correspondence(results), _segmentation(results), _health(results)]
    first = next(iter(results), "")
    if results:
        candidates.append(_differences(results, first))
    if reference is not None and reference in results and reference != first and len(results) > 2:
        candidates.append(_differences(results, reference))
    return [table for table in candidates if table.row_count]


def warnings(results: Results) -> list[str]:
    """Warnings on fits that have not converged and on vectors that have collapsed."""
    lines = []
    for name, scores in results.items():
        for path, score in scores.items():
            if path[0] in ("linear", "segmentation") and not score.details["converged"]:
                what = "the linear probe" if path[0] == "linear" else f"linear segmentation on {path[1]}"
                lines.append(
                    f"{name}: {what} has not converged: its gradient is {score.details['gradient']:.1g} after "
                    f"{score.details['evaluations']} evaluations"
                )
            if isinstance(score.value, Health) and path[-1] == "global":
                warning = collapse_warning(score.value, what=f"{name}: the global vectors")
                lines += [warning] if warning else []
    return lines


def to_json(
    results: Results, about: Mapping[str, Mapping[str, Any]], reference: str | None = None
) -> list[dict[str, Any]]:
    """Description and scores of each network, and as "minus" its differences from other networks.

    The others are the first network, the reference, and the first trained network.
    """
    trained = (name for name in results if not is_untrained(about[name]))
    others = [name for name in dict.fromkeys([next(iter(results), None), reference, next(trained, None)]) if name]
    networks = []
    for name, scores in results.items():
        minus = {other: _minus(scores, results[other]) for other in others if other != name and other in results}
        networks.append({"name": name, **about[name], "scores": nested(scores)} | ({"minus": minus} if minus else {}))
    return networks


def record(
    results: Results,
    about: Mapping[str, Mapping[str, Any]],
    train: ProbeImages,
    test: ProbeImages,
    settings: Mapping[str, Any],
    *,
    labels: tuple[LabelMaps, LabelMaps] | None = None,
    reference: str | None = None,
) -> dict[str, Any]:
    """The content of a probe.json, with its verdict.

    Args:
        results: scores of each network.
        about: description of each network, by its name.
        train: training images.
        test: test images.
        settings: of the probes.
        labels: training and test images with label maps, if segmentation or retrieval is measured.
        reference: the network from which differences are stated in addition to the first.
    """
    content: dict[str, Any] = {
        "kind": "probe",
        "train": describe(train),
        "test": describe(test),
        "settings": dict(settings),
        "networks": to_json(results, about, reference),
    }
    if labels is not None:
        content["label_maps"] = {
            part: {"images": len(maps), "size": maps.labels.shape[-1], "notes": list(maps.notes)}
            for part, maps in zip(("train", "test"), labels, strict=True)
        } | {"classes": list(labels[0].classes), "background": labels[0].background}
    if reference is not None:
        content["reference"] = reference
    content |= {"verdicts": verdicts(content), "verdict": list(probe_verdict(content))}
    return content | describe_run()


def describe(images: ProbeImages) -> dict[str, Any]:
    """The description of a set of images."""
    return {
        "source": images.source,
        "kind": images.kind,
        "images": len(images),
        "classes": len(images.classes),
        "hash": images.fingerprint(),
    }


def _minus(scores: Mapping[ScorePath, Score], other: Mapping[ScorePath, Score]) -> dict[str, Any]:
    differences = {}
    for path, score in scores.items():
        delta = difference(score, other[path]) if path in other else None
        if delta is not None:
            differences["/".join(path)] = {"difference": delta[0], "interval": list(delta[1:])}
    return differences


def _table(title: str, *columns: str, numbers: Sequence[str] = ()) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=True)
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _classification(results: Results) -> Table:
    table = _table(
        "Classification: accuracy, % [95 % bootstrap interval over test images]",
        "network", "probe", "level",
        numbers=("top-1", "interval", "top-5", "chance", "n test", "n train"),
    )  # fmt: skip
    for name, scores in results.items():
        for path, score in scores.items():
            value = score.value
            if isinstance(value, Accuracy):
                probe = _PROBES[path[0]] + (f", k = {score.details['k']}" if path[0] == "knn" else "")
                cells = [_percent(value.share), _interval(value.interval())]
                cells += [_percent(float(value.top5.mean())), _percent(value.chance)]
                cells += [str(len(value.top1)), str(score.details["n_train"])]
                table.add_row(name, probe, path[1], *cells)
    return table


def _correspondence(results: Results) -> Table:
    measured = {
        path[1]: score.value
        for scores in results.values()
        for path, score in scores.items()
        if path[0] == "correspondence"
    }
    changes = [change for change in CHANGES if change in measured]
    table = _table(
        "Region correspondence: windows matched correctly, % [95 % bootstrap interval over images]; median error, "
        "chance",
        "network", "level",
        numbers=("radius", *(f"{change}\n{_num_windows(measured[change])}" for change in changes)),
    )  # fmt: skip
    for name, scores in results.items():
        for level in dict.fromkeys(path[2] for path in scores if path[0] == "correspondence"):
            values = [scores["correspondence", change, level].value for change in changes]
            cells = [
                f"{_percent(value.accuracy)} {_interval(value.interval())}\n"
                f"{value.median_error:.1f} px, chance {_percent(value.chance)}"
                for value in values
                if isinstance(value, Correspondence)
            ]
            radius = next(value.radius for value in values if isinstance(value, Correspondence))
            table.add_row(name, level, f"{radius:g} px", *cells)
    return table


def _segmentation(results: Results) -> Table:
    table = _table(
        "Segmentation: % [95 % bootstrap interval over test images]; constant: mIoU of always the most frequent class",
        "network", "probe", "level",
        numbers=("mIoU", "mean accuracy", "foreground IoU", "constant", "n test", "n train", "cells"),
    )  # fmt: skip
    for name, scores in results.items():
        for path, score in scores.items():
            value = score.value
            if not isinstance(value, Segmentation):
                continue
            probe = "linear" if path[0] == "segmentation" else f"retrieval, {path[1]}"
            cells = [f"{_percent(value.value())} {_interval(value.interval())}"]
            cells.append(f"{_percent(value.value('mean_accuracy'))} {_interval(value.interval('mean_accuracy'))}")
            known = value.background is not None
            foreground = f"{_percent(value.value('foreground_iou'))} {_interval(value.interval('foreground_iou'))}"
            cells += [foreground if known else "", _percent(value.constant), str(len(value.confusion))]
            table.add_row(name, probe, path[-1], *cells, str(score.details["n_train"]), str(score.details["cells"]))
    return table


def _num_windows(value: object) -> str:
    assert isinstance(value, Correspondence)
    return f"n {int(value.windows.sum())} of {len(value.windows)} images"


def _health(results: Results) -> Table:
    table = _table(
        "Health of the features: effective rank (RankMe); spread (0: collapsed, 1: uniform)",
        "network", "level",
        numbers=("rank", "of", "spread", "minimum", "dead", "alignment", "uniformity", "images"),
    )  # fmt: skip
    for name, scores in results.items():
        for path, score in scores.items():
            value = score.value
            if isinstance(value, Health):
                alignment = "" if value.alignment is None else f"{value.alignment:.3f}"
                cells = [f"{value.rank:.1f}", str(value.directions), f"{value.spread:.3f}", f"{value.least_std:.3f}"]
                cells += [str(value.dead), alignment, f"{value.uniformity:.2f}", str(value.n)]
                table.add_row(name, path[1], *cells)
    return table


def _differences(results: Results, first_name: str) -> Table:
    others = [name for name in results if name != first_name]
    measures = list(dict.fromkeys(path[:-1] for name in others for path in results[name] if path[0] != "health"))
    table = _table(
        f"Each network minus {first_name}, points [95 % bootstrap interval over the same images], (noise)",
        "network", "level",
        numbers=[_measure_name(measure) for measure in measures],
    )  # fmt: skip
    for name in others:
        for level in dict.fromkeys(path[-1] for path in results[name] if path[0] != "health"):
            cells = []
            for measure in measures:
                path = (*measure, level)
                both = path in results[name] and path in results[first_name]
                delta = difference(results[name][path], results[first_name][path]) if both else None
                cells.append("" if delta is None else _points(*delta))
            if any(cells):
                table.add_row(name, level, *cells)
    return table


def _measure_name(measure: ScorePath) -> str:
    if measure[0] in ("segmentation", "retrieval"):
        return " ".join(measure) + ", mIoU"
    return _PROBES.get(measure[-1], measure[-1])


def _points(points: float, low: float, high: float) -> str:
    """A difference with its interval, in parentheses if the interval contains 0."""
    number = f"{100 * points:+.1f}"
    return f"{number if low > 0 or high < 0 else f'({number})'}\n{_interval((low, high), sign=True)}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _interval(bounds: tuple[float, float], *, sign: bool = False) -> str:
    low, high = (f"{100 * bound:+.1f}" if sign else f"{100 * bound:.1f}" for bound in bounds)
    return f"[{low}, {high}]"
