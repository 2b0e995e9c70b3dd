"""What the dense probes say of a network, a sentence each: better than the untrained one, worse, or within noise."""

from __future__ import annotations

from collections.abc import Mapping

from resim.probes.segmentation_scores import Segmentation, difference
from resim.probes.suite import Path, Score

_NAMES = {"segmentation": "Linear segmentation", "retrieval": "Dense retrieval"}


def verdicts(results: Mapping[str, Mapping[Path, Score]], reference: str) -> list[str]:
    """One sentence for each dense probe and each network but the reference.

    The level whose difference is stated is the one on which the *reference* does best, of those that both have: a
    choice that does not favour the network that is judged. How many levels are better or worse beyond noise is stated
    too.

    Args:
        results: scores of each network, by its name.
        reference: name of the network that the others are compared with.
    """
    base = results[reference]
    sentences = []
    for probe in dict.fromkeys(path[:-1] for path in base if path[0] in _NAMES):
        for name, scores in results.items():
            sentence = None if name == reference else _sentence(probe, name, scores, reference, base)
            if sentence is not None:
                sentences.append(sentence)
    return sentences


def _sentence(
    probe: Path, name: str, scores: Mapping[Path, Score], reference: str, base: Mapping[Path, Score]
) -> str | None:
    pairs: dict[str, tuple[Segmentation, Segmentation]] = {}
    for path, score in scores.items():
        if path[:-1] == probe and path in base:
            mine, other = score.value, base[path].value
            if isinstance(mine, Segmentation) and isinstance(other, Segmentation):
                pairs[path[-1]] = mine, other
    apart = {level: change for level, pair in pairs.items() if (change := difference(*pair)) is not None}
    if not apart:
        return None
    level = max(apart, key=lambda level: pairs[level][1].value())
    points, low, high = apart[level]
    memory = f" from {probe[1]} of the memory" if probe[1:] else ""
    bounds = f"{100 * low:+.1f} to {100 * high:+.1f}"
    if low > 0 or high < 0:
        amount = f"is {'better' if low > 0 else 'worse'} than {reference} by {abs(100 * points):.1f} points ({bounds})"
    else:
        amount = f"is within noise of {reference}: {100 * points:+.1f} points ({bounds})"
    better = sum(change[1] > 0 for change in apart.values())
    worse = sum(change[2] < 0 for change in apart.values())
    return (
        f"{_NAMES[probe[0]]}{memory}, mIoU: {name} {amount} on {level}, where {reference} is best; "
        f"of {len(apart)} levels {better} are better and {worse} worse beyond noise"
    )
