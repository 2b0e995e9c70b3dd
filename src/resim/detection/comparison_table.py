"""A comparison of detectors as a table."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from resim.datasets.records import DetectionData
from resim.detection.bad_images import without_remembered
from resim.detection.compare import Comparison


def print_comparison(comparison: Comparison, val: DetectionData) -> None:
    """Print the scores of a comparison in percent: mean and standard deviation over the seeds.

    Args:
        comparison: as `compare` returns it.
        val: data that the runs were evaluated on.
    """
    folders = [folder for runs in comparison.folders.values() for folder in runs]
    num_images = len(without_remembered(val, folders))
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    kinds = comparison.scores[comparison.names[0]]
    columns = [(kind, score) for kind, scores in kinds.items() for score in scores]
    table = Table("init", *(f"{kind} {score}" for kind, score in columns), box=None, padding=(0, 2, 0, 0))
    for name in comparison.names:
        table.add_row(name, *(_mean(comparison.scores[name].get(kind, {}).get(score, [])) for kind, score in columns))
    count = len(comparison.seeds)
    console.print()
    console.print(table)
    console.print(
        f"in percent; mean and standard deviation over {count} seeds, {num_images} images"
        if count > 1
        else f"in percent; one seed, so that the spread over seeds is not known; {num_images} images"
    )
    if comparison.frozen:
        console.print(f"frozen in all runs: {comparison.frozen}; everything else was trained")


def _mean(values: Sequence[float]) -> str:
    known = [100 * value for value in values if not math.isnan(value)]
    if not known:
        return "-"
    mean = sum(known) / len(known)
    if len(known) == 1:
        return f"{mean:.2f}"
    deviation = math.sqrt(sum((value - mean) ** 2 for value in known) / (len(known) - 1))
    return f"{mean:.2f} ± {deviation:.2f}"
