"""What a comparison of detectors says: a verdict of three lines, from a `compare.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from resim.exchange.sources import is_untrained
from resim.scores.verdict import Change, Wording, verdict


def comparison_verdict(content: Mapping[str, Any]) -> tuple[str, str, str]:
    """Three lines on the initialisations of a `compare.json`, of any version, by COCO's box AP.

    Args:
        content: as `resim.detection.compare.to_json` makes it.
    """
    names = [str(name) for name in content.get("scores") or ()]
    inits = content.get("inits") or {}
    # files without "inits" have the name alone, which is "random" or "random-RECIPE" where none was given
    untrained = [name for name in names if is_untrained(str(inits.get(name, name.replace("-", ":", 1))))]
    changes = []
    for one in content.get("differences") or ():
        numbers = [one.get(key) for key in ("value", "low", "high")]
        if all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
            value, low, high = map(float, numbers)
            first, second = str(one.get("first")), str(one.get("second"))
            pair = {"first": first, "second": second, "measure": "box AP"}
            changes.append(Change(**pair, value=value, low=low, high=high, digits=2))
    seeds = len(content.get("seeds") or ())
    wording = Wording(
        measures="scores",
        over="images and seeds of the fine-tuning"
        if seeds > 1
        else "images alone: one seed, whose spread is not known",
        no_untrained="add random to --init, which begins from untrained weights",
        no_other="add it to --init, such as torchvision:resnet50",
    )
    trained = [name for name in names if name not in untrained]
    return verdict(changes, trained, untrained[0] if untrained else None, wording)
