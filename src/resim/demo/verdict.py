"""What the demo found, in five lines that say so where a difference is within the noise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from resim.demo.images import HELD_OUT, LABELLED
from resim.detection.compare import Comparison, Difference
from resim.probes.suite import Path as ScorePath
from resim.probes.suite import Score, difference

NAMES = {"random": "untrained", "resim": "ReSim", "moco-v2": "MoCo v2"}


def verdict(
    scores: Mapping[str, Mapping[ScorePath, Score]], found: Comparison | None, out: Path, *, held_out_is_new: bool
) -> list[str]:
    """What was learned, in five lines for a person; they say so where a difference is within the noise."""
    where = "scenes that were not trained on" if held_out_is_new else "the training images, views drawn anew"
    some: Any = scores["resim"]["correspondence", "both", "P4"].value
    windows = f"n = {some.windows.sum()} windows of {len(some.windows)} images"
    about = f"(right within {some.radius:.0f} px, chance {some.chance:.1%}, on {where}, {windows})"
    return [
        f"1. Where is this region in the other view? On P4 {_compared(scores, 'P4', 'resim', 'random')} {about}",
        f"2. The same on C4, the backbone alone: {_compared(scores, 'C4', 'resim', 'moco-v2')}",
        f"3. {_tuned(found)}",
        "4. One seed of pre-training, minutes of it, small images: other seeds or images can give another order.",
        f"5. See {out / 'report.html'}; the backbone with its FPN is {out / 'resim' / 'checkpoints' / 'last.pt'}",
    ]


def _compared(scores: Mapping[str, Mapping[ScorePath, Score]], level: str, first: str, second: str) -> str:
    a, b = (scores[name]["correspondence", "both", level] for name in (first, second))
    change = difference(a, b)
    assert change is not None
    value, low, high = change
    return (
        f"{NAMES[first]} is right for {_share(a)}, {NAMES[second]} for {_share(b)}: "
        f"{100 * value:+.1f} points{_sure(low, high)}"
    )


def _share(score: Score) -> str:
    value: Any = score.value
    return f"{value.accuracy:.1%}"


def _tuned(found: Comparison | None) -> str:
    if found is None:
        return "No labels, so nothing was fine-tuned: resim detect train LABELS --init the checkpoint below does it."
    means = {name: float(np.mean(found.scores[name]["bbox"]["AP50"])) for name in found.names}
    told = ", ".join(f"{NAMES[name]} {100 * value:.1f}" for name, value in means.items())
    pairs = {(one.first, one.second): one for one in found.differences}
    many = f"{len(found.seeds)} seeds" if len(found.seeds) > 1 else "one seed, the intervals are over images alone"
    return (
        f"Detectors fine-tuned on {LABELLED} labelled scenes to find shapes ({many}), box AP50 in percent on "
        f"{HELD_OUT} others: {told}. "
        f"Box AP, ReSim minus untrained {_change(pairs['random', 'resim'], turned=True)}, "
        f"ReSim minus MoCo v2 {_change(pairs['resim', 'moco-v2'])}"
    )


def _change(one: Difference, *, turned: bool = False) -> str:
    value, low, high = (-one.value, -one.high, -one.low) if turned else (one.value, one.low, one.high)
    return f"{100 * value:+.1f}{_sure(low, high)}"


def _sure(low: float, high: float) -> str:
    sure = "" if low > 0 or high < 0 else ", within the noise: this run cannot tell them apart"
    return f" (95 % interval {100 * low:+.1f} to {100 * high:+.1f}{sure})"
