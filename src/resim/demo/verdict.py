"""The verdict of the demo in a few lines, which say if a difference is within the noise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from resim.demo.detectors import TITLE
from resim.demo.images import DemoImages
from resim.demo.probes import BACKBONE, NAMES, PYRAMID
from resim.detection.compare import Comparison, Difference
from resim.probes import segmentation_scores
from resim.probes.config import ScorePath
from resim.probes.segmentation_scores import Segmentation
from resim.probes.suite import Score, difference

Scores = Mapping[str, Mapping[ScorePath, Score]]

_CORRESPONDENCE = ("correspondence", "both")
_DENSE = (
    (("segmentation",), "Linear segmentation: which pixels are objects, by one linear classifier of frozen features"),
    (("retrieval", "100%"), "Dense retrieval: the same by the most similar cells of labelled scenes, nothing trained"),
)


def verdict(scores: Scores, comparison: Comparison | None, out: Path, images: DemoImages) -> list[str]:
    """The results, one numbered line for each; a line says if a difference is within the noise."""
    is_held_out = images.labelled is not None
    test_images = "scenes that were not trained on" if is_held_out else "the training images, in new views"
    some: Any = scores["resim"][*_CORRESPONDENCE, PYRAMID].value
    windows = f"n = {some.windows.sum()} windows of {len(some.windows)} images"
    lines = [
        f"Where is this region in the other view? {_compared(scores, _CORRESPONDENCE)} "
        f"(right within {some.radius:.0f} px, chance {some.chance:.1%}, on {test_images}, {windows})"
    ]
    for probe, words in _DENSE:
        path = (*probe, BACKBONE)
        if path in scores["resim"]:
            about = f"foreground IoU, {images.num_labelled} labelled scenes, {_num_images(scores, path)} others"
            lines.append(f"{words} ({about}). {_compared(scores, probe)}")
    lines += [
        _detected(comparison, images),
        "One seed of pre-training, minutes of it, small images: other seeds or images can give another order.",
        f"See {out / 'report.html'}; the backbone with its FPN is {out / 'resim' / 'checkpoints' / 'last.pt'}",
    ]
    return [f"{number}. {line}" for number, line in enumerate(lines, 1)]


def _compared(scores: Scores, probe: ScorePath) -> str:
    """All networks on the backbone's map, and those with an FPN on the FPN's map."""
    return f"On {BACKBONE}, the backbone: {_on(scores, probe, BACKBONE)}; on {PYRAMID} of the FPN: " + _on(
        scores, probe, PYRAMID
    )


def _on(scores: Scores, probe: ScorePath, level: str) -> str:
    path = (*probe, level)
    having = [name for name in NAMES if path in scores[name]]
    values = ", ".join(f"{NAMES[name]} {_share(scores[name][path]):.1%}" for name in having)
    apart = [
        f"ReSim minus {NAMES[name]} {_change(scores['resim'][path], scores[name][path])}"
        for name in having
        if name != "resim"
    ]
    return f"{values}; {', '.join(apart)}"


def _share(score: Score) -> float:
    value: Any = score.value
    return value.value("foreground_iou") if isinstance(value, Segmentation) else value.accuracy


def _change(a: Score, b: Score) -> str:
    if isinstance(a.value, Segmentation) and isinstance(b.value, Segmentation):
        change = segmentation_scores.difference(a.value, b.value, "foreground_iou")
    else:
        change = difference(a, b)
    assert change is not None
    return points(*change)


def _num_images(scores: Scores, path: ScorePath) -> int:
    value = scores["resim"][path].value
    assert isinstance(value, Segmentation)
    return len(value.confusion)


def _detected(comparison: Comparison | None, images: DemoImages) -> str:
    if images.labelled is None:
        return "No labels, so no detector was trained: resim detect train LABELS --init the checkpoint below does it."
    if comparison is None:
        return "There was no time for detectors: a larger --minutes trains them."
    means = {name: float(np.mean(comparison.scores[name]["bbox"]["AP50"])) for name in comparison.names}
    values = ", ".join(f"{NAMES[name]} {100 * value:.1f}" for name, value in means.items())
    pairs = {(one.first, one.second): one for one in comparison.differences}
    num_seeds = len(comparison.seeds)
    seeds = f"{num_seeds} seeds" if num_seeds > 1 else "one seed, the intervals are over images alone"
    return (
        f"{TITLE[0].upper()}{TITLE[1:]}, trained on {images.num_labelled} labelled scenes to find shapes ({seeds}), "
        f"box AP50 in percent on {images.num_evaluated} others: {values}. "
        f"Box AP, ReSim minus untrained {_box_change(pairs['random', 'resim'], turned=True)}, "
        f"ReSim minus MoCo v2 {_box_change(pairs['resim', 'moco-v2'])}"
    )


def _box_change(one: Difference, *, turned: bool = False) -> str:
    return points(-one.value, -one.high, -one.low) if turned else points(one.value, one.low, one.high)


def points(value: float, low: float, high: float) -> str:
    """A difference of shares in points, with its interval, and whether the interval excludes zero."""
    noise = "" if low > 0 or high < 0 else ", within the noise: this run cannot tell them apart"
    return f"{100 * value:+.1f} points (95 % interval {100 * low:+.1f} to {100 * high:+.1f}{noise})"
