"""The detections in images without labels, in one line: their number, and the best score where there is none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from resim.counts import counted


def summary(scores: Mapping[str, Sequence[float]], threshold: float, *, least: float) -> str:
    """One line on the detections in some images, with the remedy where an image has none.

    Args:
        scores: of the detections in each image, by its path; at least one image.
        threshold: score from which a detection is drawn.
        least: score below which the detector returns no detection.
    """
    best = {path: max(values) for path, values in scores.items() if values}
    empty = [path for path in scores if path not in best or best[path] < threshold]
    images, shown = len(scores), sum(score >= threshold for values in scores.values() for score in values)
    above = f"with a score of {threshold:g} or more"
    if not empty:
        return f"{counted(shown, 'detection')} {above}, in {'all of ' if images > 1 else ''}{counted(images, 'image')}"
    have = "has" if len(empty) == 1 else "have"
    if len(empty) == images:
        text, among = f"{images} of {counted(images, 'image')} {have} no detection {above}", "the best score"
    else:
        text = f"{counted(shown, 'detection')} {above}, in {images - len(empty)} of {images} images; "
        text, among = f"{text}{len(empty)} {have} none", "the best score there"
    path = max((path for path in empty if path in best), key=lambda path: best[path], default=None)
    if path is None:
        return f"{text}, and none below it" + (f" (this detector returns none below {least:g})" if least > 0 else "")
    # rounded down: 0.4999 must not read as 0.5, and the remedy must draw it
    score, remedy = (math.floor(best[path] * places) / places for places in (1000, 100))
    return f"{text}; {among} is {score:.3f}, in {path}: --threshold {remedy:g} draws it"
