"""What was measured, as tables for a person and as plain data for a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from resim.probes.accuracy import Accuracy
from resim.probes.correspondence import Correspondence
from resim.probes.health import Health, collapse
from resim.probes.label_maps import LabelMaps
from resim.probes.labels import ProbeImages
from resim.probes.pairs import CHANGES
from resim.probes.segmentation_scores import Segmentation
from resim.probes.suite import Path, Score, difference, nested
from resim.probes.verdict import is_untrained, probe_verdict, verdicts
from resim.runs.provenance import describe_run

Results = Mapping[str, Mapping[Path, Score]]
"""Scores of each network, by its name, in the order in which they are shown."""

_CLASSES = {"knn": "kNN", "linear": "linear", "linear-sgd": "linear, SGD"}


def tables(results: Results, reference: str | None = None) -> list[Table]:
    """Every table that has a row: classes, regions, segmentation, health, and differences from the first network.

    Args:
        results: scores of each network.
        reference: a network from which differences are shown too, such as the untrained one.
    """
    made = [_classes(results), _regions(results), _segmentation(results), _health(results)]
    first = next(iter(results), "")
    if results:
        made.append(_differences(results, first))
    if reference is not None and reference in results and reference != first and len(results) > 2:
        made.append(_differences(results, reference))
    return [table for table in made if table.row_count]


def warnings(results: Results) -> list[str]:
    """What a reader must know: a k that was cut, a fit that did not converge, vectors that have collapsed."""
    told = []
    for name, scores in results.items():
        for path, score in scores.items():
            if path[0] in ("linear", "segmentation") and not score.details["converged"]:
                what = "the linear probe" if path[0] == "linear" else f"linear segmentation on {path[1]}"
                told.append(
                    f"{name}: {what} stopped at a gradient of {score.details['gradient']:.1g} after "
                    f"{score.details['evaluations']} evaluations, before it had converged"
                )
            if isinstance(score.value, Health) and path[-1] == "global":
                wrong = collapse(score.value, what=f"{name}: the global vectors")
                told += [wrong] if wrong else []
    return told


def to_json(
    results: Results, about: Mapping[str, Mapping[str, Any]], reference: str | None = None
) -> list[dict[str, Any]]:
    """Each network's description and its scores, and under "minus" its differences from others by their names.

    The others are the first network, the reference, and the first network that was trained.
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
    """All of a measurement as the plain data of a `probe.json`, with its verdict.

    Args:
        results: of every network.
        about: what is known of each, by its name.
        train: images whose classes were known.
        test: images that were asked about.
        settings: of the measurement.
        labels: training and test images with label maps, where segmentation or retrieval was measured.
        reference: the network from which differences are stated beside those from the first.
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
    """What images they are."""
    return {
        "source": images.source,
        "kind": images.kind,
        "images": len(images),
        "classes": len(images.classes),
        "hash": images.fingerprint(),
    }


def _minus(scores: Mapping[Path, Score], other: Mapping[Path, Score]) -> dict[str, Any]:
    found = {}
    for path, score in scores.items():
        apart = difference(score, other[path]) if path in other else None
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
    asked = {path[1]: score.value for scores in results.values() for path, score in scores.items() if _is_region(path)}
    changes = [change for change in CHANGES if change in asked]
    table = _table(
        "Regions: % found again in the other view [95 % bootstrap interval over images]; median error, chance",
        "network", "level",
        numbers=("within", *(f"{change}\n{_windows(asked[change])}" for change in changes)),
    )  # fmt: skip
    for name, scores in results.items():
        for level in dict.fromkeys(path[2] for path in scores if _is_region(path)):
            found = [scores["correspondence", change, level].value for change in changes]
            cells = [
                f"{_percent(value.accuracy)} {_interval(value.interval())}\n"
                f"{value.median_error:.1f} px, {_percent(value.chance)}"
                for value in found
                if isinstance(value, Correspondence)
            ]
            radius = next(value.radius for value in found if isinstance(value, Correspondence))
            table.add_row(name, level, f"{radius:g} px", *cells)
    return table


def _is_region(path: Path) -> bool:
    return path[0] == "correspondence"


def _segmentation(results: Results) -> Table:
    table = _table(
        "Label maps: % [95 % bootstrap interval over test images]; constant: mIoU of the most frequent class alone",
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


def _windows(value: object) -> str:
    assert isinstance(value, Correspondence)
    return f"n {int(value.windows.sum())} of {len(value.windows)} images"


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


def _differences(results: Results, first_name: str) -> Table:
    others = [name for name in results if name != first_name]
    measures = list(dict.fromkeys(path[:-1] for name in others for path in results[name] if path[0] != "health"))
    table = _table(
        f"Each network minus {first_name}, points [95 % bootstrap interval over the same images]; in brackets: noise",
        "network", "level",
        numbers=[_measure_name(measure) for measure in measures],
    )  # fmt: skip
    for name in others:
        for level in dict.fromkeys(path[-1] for path in results[name] if path[0] != "health"):
            cells = []
            for measure in measures:
                path = (*measure, level)
                both = path in results[name] and path in results[first_name]
                apart = difference(results[name][path], results[first_name][path]) if both else None
                cells.append("" if apart is None else _points(*apart))
            if any(cells):
                table.add_row(name, level, *cells)
    return table


def _measure_name(measure: Path) -> str:
    if measure[0] in ("segmentation", "retrieval"):
        return " ".join(measure) + ", mIoU"
    return _CLASSES.get(measure[-1], measure[-1])


def _points(points: float, low: float, high: float) -> str:
    told = f"{100 * points:+.1f}"
    return f"{told if low > 0 or high < 0 else f'({told})'}\n{_interval((low, high), sign=True)}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _interval(bounds: tuple[float, float], *, sign: bool = False) -> str:
    low, high = (f"{100 * bound:+.1f}" if sign else f"{100 * bound:.1f}" for bound in bounds)
    return f"[{low}, {high}]"
