"""A study's tables and pictures, from results.csv and the per-image counts: nothing is measured here.

A difference between two methods is that of their means over seeds. Its interval of 95 % is a bootstrap over images and
seeds: each of 2,000 draws takes images with replacement, the same for both methods, and seeds with replacement, the
same where both methods have the same seeds. With two seeds it is as coarse as two seeds are.
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.figure import Figure
from probing import UNTRAINED
from records import Row, read_rows

from resim.probes.segmentation_scores import Measure, measure_sums

DRAWS = 2000
Kind = Measure | Literal["accuracy"]
MAIN: tuple[tuple[str, Kind], ...] = (
    ("correspondence/both", "accuracy"),
    ("segmentation", "miou"),
    ("segmentation", "foreground_iou"),
    ("retrieval/100%", "miou"),
)


@dataclass(frozen=True)
class Difference:
    """The mean of one method minus that of another, in points of a percent."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        sure = "" if self.low > 0 or self.high < 0 else ", within noise"
        return f"{self.value:+.1f} ({self.low:+.1f} to {self.high:+.1f}{sure})"


def final_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows of the networks at their ends: for each method and seed those with the most pairs."""
    ends: dict[tuple[str, int], int] = defaultdict(int)
    for row in rows:
        ends[row.method, row.seed] = max(ends[row.method, row.seed], row.pairs)
    return [row for row in rows if row.status == "ok" and row.pairs == ends[row.method, row.seed]]


def difference(a: Sequence[np.ndarray], b: Sequence[np.ndarray], measure: Kind) -> Difference:
    """The mean over the networks of `a` minus that of `b`.

    Args:
        a: per-image counts of each seed's network, of the same images: (N, 2) right and asked for "accuracy", else
            (N, 3, K) as `Segmentation.counts`.
        b: the same of the other method.
        measure: "accuracy", or a measure of `Segmentation` with the background in place 0.
    """
    rng = np.random.default_rng(0)
    images = len(a[0])
    weights = rng.multinomial(images, np.full(images, 1 / images), size=DRAWS).astype(np.float64)
    weights[0] = 1.0  # the first draw is the sample itself
    values_a, values_b = (np.stack([_measure(counts, weights, measure) for counts in group]) for group in (a, b))
    chosen_a = rng.integers(len(a), size=(DRAWS, len(a)))
    chosen_b = chosen_a if len(a) == len(b) else rng.integers(len(b), size=(DRAWS, len(b)))
    at = np.arange(DRAWS)[:, None]
    drawn = values_a[chosen_a, at].mean(axis=1) - values_b[chosen_b, at].mean(axis=1)
    low, high = np.percentile(drawn[1:], [2.5, 97.5])
    value = values_a[:, 0].mean() - values_b[:, 0].mean()
    return Difference(100 * float(value), 100 * float(low), 100 * float(high))


def _measure(counts: np.ndarray, weights: np.ndarray, measure: Kind) -> np.ndarray:
    """(DRAWS,) of one network under image weights (DRAWS, N)."""
    sums = (weights @ counts.reshape(len(counts), -1)).reshape(len(weights), *counts.shape[1:])
    if measure == "accuracy":
        return sums[:, 0] / np.maximum(sums[:, 1], 1)
    return measure_sums(sums, counts.sum(axis=0), measure, background=0)


def table(
    rows: Sequence[Row], counts: Mapping[tuple[str, int, str, str], np.ndarray], probe: str, measure: Kind
) -> str:
    """A Markdown table of one probe: a line a method, a column a level; below it the paired differences."""
    chosen = [row for row in final_rows(rows) if row.probe == probe and row.measure == measure]
    methods, levels = (sorted({getattr(row, name) for row in chosen}) for name in ("method", "level"))
    lines = ["| method | " + " | ".join(levels) + " |", "| --- |" + " --- |" * len(levels)]
    for method in methods:
        cells = []
        for level in levels:
            values = [100 * row.value for row in chosen if (row.method, row.level) == (method, level) and row.value]
            cells.append(_mean(values))
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    lines.append("")
    for a, b in itertools.combinations(methods, 2):
        first, second = (b, a) if a == UNTRAINED or (a == "moco-v2" and b != UNTRAINED) else (a, b)
        for level in levels:
            groups = [
                [array for (method, _, where, at), array in sorted(counts.items(), key=lambda item: item[0][:2])
                 if (method, where, at) == (name, probe, level)]
                for name in (first, second)
            ]  # fmt: skip
            if all(groups):
                change = difference(groups[0], groups[1], measure)
                lines.append(f"* {level}: {first} minus {second} {change}")
    return "\n".join(lines)


def _mean(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread} (n = {len(values)})"


def read_counts(folder: Path, rows: Sequence[Row]) -> dict[tuple[str, int, str, str], np.ndarray]:
    """Per-image counts of the networks at their ends, by method, seed, probe and level."""
    found = {}
    for method, seed, pairs in sorted({(row.method, row.seed, row.pairs) for row in final_rows(rows)}):
        path = folder / f"{method}-seed{seed}-{pairs}.npz"
        if path.exists():
            with np.load(path) as arrays:
                for name in arrays.files:
                    probe, _, level = name.rpartition("/")
                    found[method, seed, probe, level] = arrays[name]
    return found


def draw_learning_curves(rows: Sequence[Row], out: Path) -> None:
    """Each main measure against view pairs, a line a method: the mean over seeds, single seeds as points."""
    figure = Figure(figsize=(5 * len(MAIN), 4), dpi=100, layout="constrained")
    for axes, (probe, measure) in zip(figure.subplots(1, len(MAIN)), MAIN, strict=True):
        chosen = [row for row in rows if (row.probe, row.measure) == (probe, measure) and row.status == "ok"]
        level = "P4" if any(row.level == "P4" for row in chosen) else "C4"
        for method in sorted({row.method for row in chosen}):
            at = "C4" if not any((row.method, row.level) == (method, level) for row in chosen) else level
            points: dict[int, list[float]] = defaultdict(list)
            for row in chosen:
                if (row.method, row.level) == (method, at) and row.value is not None:
                    points[row.pairs].append(100 * row.value)
            x = sorted(points)
            (line,) = axes.plot(x, [np.mean(points[one]) for one in x], marker="o", label=f"{method}, {at}")
            for one in x:
                axes.plot([one] * len(points[one]), points[one], ".", color=line.get_color(), alpha=0.5)
        axes.set_xlabel("view pairs")
        axes.set_title(f"{probe}, {measure}, %")
        axes.legend(fontsize=8)
    figure.savefig(out)


def main() -> None:
    """Print the tables of a study's folder and draw its curves."""
    parser = argparse.ArgumentParser(description="Tables and curves of a study.")
    parser.add_argument("folder", type=Path, help="folder with results.csv and counts/")
    folder = parser.parse_args().folder
    rows = list(read_rows(folder / "results.csv"))
    counts = read_counts(folder / "counts", rows)
    for probe, measure in MAIN:
        print(f"### {probe}, {measure}, percent\n\n{table(rows, counts, probe, measure)}\n")
    draw_learning_curves(rows, folder / "curves.png")


if __name__ == "__main__":
    main()
