"""Pictures of a comparison of initialisations: AP over steps, and detections on the same images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from resim.datasets.records import DetectionData
from resim.detection.compare import Comparison
from resim.detection.evaluate import read_scores, sheet_images
from resim.detection.pictures import detection_sheet
from resim.draw.metric_panels import COLOURS
from resim.runs.checkpoints import write_atomically
from resim.scores.results import read_results

KINDS = {"bbox": "boxes", "segm": "masks", "keypoints": "keypoints", "cityscapes": "masks, Cityscapes"}


def draw_ap_curves(comparison: Comparison, out: Path, *, title: str = "") -> Path:
    """Draw AP over steps: each seed faint, the mean over seeds solid; a panel each for boxes, masks and keypoints.

    Args:
        comparison: finished runs with their `scores.jsonl`.
        out: PNG file.
        title: one line.

    Returns:
        `out`.
    """
    runs = {name: [read_scores(folder) for folder in folders] for name, folders in comparison.folders.items()}
    kinds = list(dict.fromkeys(kind for scores in comparison.scores.values() for kind in scores))
    figure = Figure(figsize=(7.2 * len(kinds), 5.2), dpi=110, layout="constrained")
    if title:
        figure.suptitle(title)
    for axes, kind in zip(np.atleast_1d(figure.subplots(1, len(kinds))), kinds, strict=True):
        for index, (name, seeds) in enumerate(runs.items()):
            colour, marker = COLOURS[index % len(COLOURS)], "osD^vP"[index % 6]
            curves = [_curve(lines, kind) for lines in seeds]
            for steps, values in curves if len(curves) > 1 else ():
                axes.plot(steps, values, color=colour, alpha=0.3, linewidth=1)
            shared = sorted(set.intersection(*(set(steps) for steps, _ in curves)))
            mean = [np.mean([dict(zip(*curve, strict=True))[step] for curve in curves]) for step in shared]
            axes.plot(shared, mean, color=colour, marker=marker, markersize=5, linewidth=2, label=name)
        axes.set(xlabel="steps", ylabel="AP (%)", title=f"AP of {KINDS.get(kind, kind)}")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_atomically(out, lambda file: file.write(content.getvalue()))
    return out


def _curve(lines: Sequence[dict[str, Any]], kind: str) -> tuple[list[int], list[float]]:
    """Steps of the evaluations, and their AP in percent."""
    pairs = [(line["step"], line["scores"].get(kind, {}).get("AP")) for line in lines]
    points = [(step, 100 * value) for step, value in pairs if value is not None]
    return [step for step, _ in points], [value for _, value in points]


def draw_comparison_sheet(comparison: Comparison, val: DetectionData, out: Path, *, title: str = "") -> Path | None:
    """Draw images with the ground truth and, in a column each, the detections of each initialisation's first seed.

    Returns:
        `out`; None if no image has an object.
    """
    pictures = sheet_images(val)
    if not pictures:
        return None
    columns = []
    for name, folders in comparison.folders.items():
        note = f"seed {comparison.seeds[0]}, AP {100 * comparison.scores[name]['bbox']['AP'][0]:.1f} %"
        columns.append((name, note, read_results(folders[0] / "results.json")))
    sheet = detection_sheet(val, pictures, columns, title=title or "Ground truth and detections")
    write_atomically(out, lambda file: sheet.save(file, format="png"))
    return out
