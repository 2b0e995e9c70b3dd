"""Tables and curves of a study, computed from results.csv and the per-image counts.

A difference between two methods is the mean over the seeds that both have. Its 95 % interval is over images (a
bootstrap, with the same samples for both methods) and, by Student's t, over seeds: see `paired_interval` in
`resim.scores.bootstrap`. It is very wide for two seeds and informative from three.
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
from methods import ORDER
from records import Row, read_counts, read_rows

from resim.probes.segmentation_scores import Measure, measure_sums
from resim.scores.bootstrap import paired_interval

SAMPLES = 300  # bootstrap samples of the images, as many as `detecting.REPLICATES`
Kind = Measure | Literal["accuracy", "AP"]
Key = tuple[str, int, str, str]
"""Method, seed, probe, level."""
PROBES: tuple[tuple[str, Kind], ...] = (
    ("correspondence/both", "accuracy"),
    ("segmentation", "miou"),
    ("segmentation", "foreground_iou"),
    ("retrieval/100%", "miou"),
    ("knn", "accuracy"),
    ("linear", "accuracy"),
)
CURVES = PROBES[:4]
_MAIN_LEVELS = ("P4", "C4")  # a curve shows the first of them that the method has


@dataclass(frozen=True)
class Difference:
    """The mean of one method minus that of another over `num_seeds` seeds, in percentage points."""

    value: float
    low: float
    high: float
    num_seeds: int

    @property
    def is_sure(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        noise = "" if self.is_sure else ", within noise"
        return f"{self.value:+.1f} ({self.low:+.1f} to {self.high:+.1f}{noise})"


def final_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows of the final networks: for each method and seed, those with the most view pairs."""
    final_pairs: dict[tuple[str, int], int] = defaultdict(int)
    for row in rows:
        final_pairs[row.method, row.seed] = max(final_pairs[row.method, row.seed], row.pairs)
    return [row for row in rows if row.status == "ok" and row.pairs == final_pairs[row.method, row.seed]]


def difference(a: Mapping[int, np.ndarray], b: Mapping[int, np.ndarray], measure: Kind) -> Difference | None:
    """The mean over seeds of `a` minus that of `b`; None if they have no seed in common.

    Args:
        a: by seed, counts of the same N images: for "accuracy" (N, 2), correct and all; for measures of `Segmentation`
            (N, 3, K), its `counts`; for "AP" (1 + SAMPLES,), the AP, then the AP of bootstrap samples.
        b: the same for the other method.
        measure: "accuracy", "AP", or a measure of `Segmentation` with the background at index 0.
    """
    seeds = sorted(set(a) & set(b))
    if not seeds:
        return None
    first, second = (np.stack([_bootstrap(group[seed], measure) for seed in seeds]) for group in (a, b))
    low, high = paired_interval(first[:, 1:], second[:, 1:], seed=0)
    value = float((first[:, 0] - second[:, 0]).mean())
    return Difference(100 * value, 100 * low, 100 * high, len(seeds))


def _bootstrap(counts: np.ndarray, measure: Kind) -> np.ndarray:
    """The measure of one network over all images, then of bootstrap samples of the images: (1 + SAMPLES,)."""
    if measure == "AP":
        return counts
    images = len(counts)
    weights = np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), size=SAMPLES).astype(np.float64)
    weights = np.concatenate([np.ones((1, images)), weights])
    sums = (weights @ counts.reshape(images, -1)).reshape(len(weights), *counts.shape[1:])
    if measure == "accuracy":
        return sums[:, 0] / np.maximum(sums[:, 1], 1)
    return measure_sums(sums, counts.sum(axis=0), measure, background=0)


def table(rows: Sequence[Row], counts: Mapping[Key, np.ndarray], probe: str, measure: Kind, *, minus: str = "") -> str:
    """A Markdown table of one probe: a line per method and per paired difference, a column per level.

    Args:
        rows: of any probes.
        counts: of the final networks.
        probe: the probe.
        measure: of the probe.
        minus: the method from which all others differ; none: every pair of methods has a line.
    """
    chosen = [row for row in final_rows(rows) if row.probe == probe and row.measure == measure]
    levels = sorted({row.level for row in chosen})
    methods = sorted({row.method for row in chosen}, key=_rank)
    lines = ["| method | " + " | ".join(levels) + " |", "| --- |" + " ---: |" * len(levels)]
    for method in methods:
        cells = []
        for level in levels:
            values = [row.value for row in chosen if (row.method, row.level) == (method, level)]
            cells.append(_mean([100 * value for value in values if value is not None]))
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    changes = []
    pairs = [(minus, name) for name in methods if name != minus] if minus else itertools.combinations(methods, 2)
    for b, a in pairs:
        cells = []
        for level in levels:
            first, second = (_by_seed(counts, method, probe, level) for method in (a, b))
            change = difference(first, second, measure)
            cells.append("" if change is None else str(change))
        if any(cells):
            changes.append(f"| {a} minus {b} | " + " | ".join(cells) + " |")
    return "\n".join(lines + changes)


def _by_seed(counts: Mapping[Key, np.ndarray], method: str, probe: str, level: str) -> dict[int, np.ndarray]:
    return {key[1]: array for key, array in counts.items() if (key[0], *key[2:]) == (method, probe, level)}


def _rank(method: str) -> tuple[int, str]:
    """Sort key of methods: untrained networks first, then the methods in order, each before its variants."""
    name = next((name for name in reversed(ORDER) if method.startswith(name)), "")
    return (ORDER.index(name) if name else len(ORDER)), method


def _mean(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}"


def read_final_counts(folder: Path, rows: Sequence[Row]) -> dict[Key, np.ndarray]:
    """Read the counts of the final networks."""
    counts = {}
    for method, seed, pairs in sorted({(row.method, row.seed, row.pairs) for row in final_rows(rows)}):
        for name, array in read_counts(folder / f"{method}-seed{seed}-{pairs}.npz").items():
            probe, _, level = name.rpartition("/")
            counts[method, seed, probe, level] = array
    return counts


def origin(rows: Sequence[Row]) -> str:
    """A text on the origin of the numbers: seeds, view pairs, failed runs."""
    final = final_rows(rows)
    seeds = defaultdict(set)
    for row in final:
        seeds[row.method].add(row.seed)
    parts = [f"{name} {len(seeds[name])}" for name in sorted(seeds, key=_rank)]
    pairs = sorted({row.pairs for row in final if row.pairs})
    failed = [row for row in rows if row.status != "ok"]
    text = f"Seeds: {', '.join(parts)}. View pairs: {', '.join(f'{number:,}' for number in pairs)}."
    return text + "".join(f"\nFailed: {row.method}, seed {row.seed}, {row.probe}: {row.status}" for row in failed)


def draw_learning_curves(rows: Sequence[Row], out: Path) -> None:
    """Draw each probe over view pairs, a curve per method: the mean over seeds, single seeds as points."""
    figure = Figure(figsize=(4.2 * len(CURVES), 3.8), dpi=100, layout="constrained")
    for axes, (probe, measure) in zip(figure.subplots(1, len(CURVES)), CURVES, strict=True):
        chosen = [row for row in rows if (row.probe, row.measure, row.status) == (probe, measure, "ok")]
        untrained = [row for row in chosen if row.pairs == 0]
        for number, method in enumerate(sorted({row.method for row in chosen if row.pairs}, key=_rank)):
            trained = [row for row in chosen if row.method == method]
            level = next((name for name in _MAIN_LEVELS if any(row.level == name for row in trained)), trained[0].level)
            points: dict[int, list[float]] = defaultdict(list)
            for row in [*untrained, *trained]:
                if row.level == level and row.value is not None:
                    points[row.pairs].append(100 * row.value)
            x = sorted(points)
            axes.plot(x, [np.mean(points[one]) for one in x], color=f"C{number}", label=f"{method}, {level}")
            for one in x:
                axes.plot([one] * len(points[one]), points[one], ".", color=f"C{number}", alpha=0.5)
        axes.set_xlabel("view pairs")
        axes.set_title(f"{probe}, {measure.replace('_', ' ')}, %", fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(out)


def main() -> None:
    """Print the tables of a study and draw its curves."""
    parser = argparse.ArgumentParser(description="Tables and curves of a study.")
    parser.add_argument("folder", type=Path, help="folder with results.csv and counts/")
    parser.add_argument("--levels", nargs="*", default=[], help="columns, such as C4 P4 all box; default: all")
    parser.add_argument(
        "--minus", default="", metavar="METHOD", help="only differences from this method; default: all pairs"
    )
    options = parser.parse_args()
    folder: Path = options.folder
    rows = list(read_rows(folder / "results.csv"))
    shown = [row for row in rows if not options.levels or row.level in options.levels]
    counts = read_final_counts(folder / "counts", rows)
    detectors: list[tuple[str, Kind]] = [
        (probe, "AP") for probe in dict.fromkeys(row.probe for row in rows) if probe.startswith("detector/")
    ]
    print(origin(rows) + "\n")
    for probe, measure in [*PROBES, *detectors]:
        lines = table(shown, counts, probe, measure, minus=options.minus)
        print(f"### {probe}, {measure.replace('_', ' ')}, percent\n\n{lines}\n")
    draw_learning_curves(rows, folder / "curves.png")


if __name__ == "__main__":
    main()
