"""Conclusions from a `probe.json`: a sentence for each probe, and a verdict of three lines.

Two networks are compared on the level on which the *other* network is best, of those that both have: a choice that does
not favour the network that is judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from resim.scores.verdict import Change, Wording, points, verdict

Json = Mapping[str, Any]
_VALUES = ("top1", "accuracy", "miou")
_PROBES = {"knn": "kNN", "linear": "linear", "linear-sgd": "linear by SGD"}
_WORDING = Wording(
    measures="probes",
    over="test images, not over seeds of the pre-training",
    no_untrained="name random too, the untrained network of the first one",
    no_other="name another network too, such as a run's folder, a file, or torchvision:resnet50",
)


def probe_verdict(content: Json) -> tuple[str, str, str]:
    """A verdict of three lines on the networks of a `probe.json` of any version.

    Args:
        content: as `resim.probes.tables.record` returns it.
    """
    networks = _networks(content)
    untrained = reference_of(content)
    trained = [name for name, network in networks.items() if not is_untrained(network)]
    changes = []
    for name in trained:
        for other in [*([untrained] if untrained is not None else []), *trained]:
            if other == untrained or trained.index(name) < trained.index(other):
                changes += [change for change, _ in _compare_by_probe(networks, name, other)]
    return verdict(changes, trained, untrained, _WORDING)


def verdicts(content: Json) -> list[str]:
    """A sentence for each probe and network on its difference from the untrained network, or else from the first.

    Each sentence also states the number of levels that are better or worse beyond noise.

    Args:
        content: as `resim.probes.tables.record` returns it.
    """
    networks = _networks(content)
    base = reference_of(content) or next(iter(networks), "")
    pairs = [pair for name in networks if name != base for pair in _compare_by_probe(networks, name, base)]
    order = list(dict.fromkeys(probe for probe, _, _ in _scores(networks.get(base, {}))))
    pairs.sort(key=lambda pair: order.index(pair[1][0]))
    return [_sentence(change, *levels) for change, levels in pairs]


def reference_of(content: Json) -> str | None:
    """The name of the untrained network with which the others are compared; None if there is none."""
    name = content.get("reference")
    untrained = (name for name, network in _networks(content).items() if is_untrained(network))
    return str(name) if name is not None else next(untrained, None)


def is_untrained(about: Json) -> bool:
    """Whether a network is untrained, by its description."""
    return str(about.get("kind") or about.get("name", "")).startswith(("untrained", "random"))


def _networks(content: Json) -> dict[str, Json]:
    return {str(n.get("name", "")): n for n in content.get("networks") or () if isinstance(n, dict)}


def _compare_by_probe(
    networks: Mapping[str, Json], name: str, other: str
) -> Iterator[tuple[Change, tuple[tuple[str, ...], Sequence[Change]]]]:
    """For each probe, the difference on the level on which the other is best; and the probe with all differences."""
    values = {(*probe, level): value for probe, level, value in _scores(networks[other])}
    pairs: dict[tuple[str, ...], dict[str, Change]] = {}
    for path, (value, low, high) in _differences(networks, name, other).items():
        if path in values and math.isfinite(value) and math.isfinite(low) and math.isfinite(high):
            measure = f"{_probe_name(path[:-1])} on {path[-1]}"
            change = Change(first=name, second=other, measure=measure, value=value, low=low, high=high)
            pairs.setdefault(path[:-1], {})[path[-1]] = change
    for probe, levels in pairs.items():
        best = max(levels, key=lambda level, probe=probe: values[(*probe, level)])
        yield levels[best], (probe, list(levels.values()))


def _differences(
    networks: Mapping[str, Json], name: str, other: str
) -> dict[tuple[str, ...], tuple[float, float, float]]:
    """Stored differences of a network from another by probe and level; either of the two may store them."""
    forward, backward = _stored(networks, name, other), _stored(networks, other, name)
    return {path: (-value, -high, -low) for path, (value, low, high) in backward.items()} | forward


def _stored(networks: Mapping[str, Json], name: str, other: str) -> dict[tuple[str, ...], tuple[float, float, float]]:
    network, first = networks[name], next(iter(networks))
    stored = (network.get("minus") or {}).get(other)
    if stored is None and other == first:  # files of older versions have no "minus"
        stored = network.get("less_first")
    elif stored is None and is_untrained(networks[other]):
        stored = network.get("less_reference")
    differences = {}
    for path, entry in (stored or {}).items():
        numbers = [entry.get("difference"), *(entry.get("interval") or ())]
        if len(numbers) == 3 and all(isinstance(number, int | float) for number in numbers):
            differences[tuple(path.split("/"))] = float(numbers[0]), float(numbers[1]), float(numbers[2])
    return differences


def _scores(network: Json) -> Iterator[tuple[tuple[str, ...], str, float]]:
    """Probe, level and value of every score that can be compared."""

    def walk(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str, float]]:
        if not isinstance(value, dict):
            return
        key = next((key for key in _VALUES if key in value), None)
        if key is None:
            for name, inner in value.items():
                yield from walk(inner, (*path, str(name)))
        elif len(path) > 1 and isinstance(value[key], int | float) and math.isfinite(value[key]):
            yield path[:-1], path[-1], float(value[key])

    yield from walk(network.get("scores", {}), ())


def _probe_name(probe: tuple[str, ...]) -> str:
    if probe[0] == "correspondence":
        return f"correspondence ({probe[1]})"
    if probe[0] == "segmentation":
        return "linear segmentation"
    if probe[0] == "retrieval":
        return f"retrieval ({probe[1]} in memory)"
    return _PROBES.get(probe[0], " ".join(probe))


def _sentence(change: Change, probe: tuple[str, ...], levels: Sequence[Change]) -> str:
    name, level = change.measure.rsplit(" on ", 1)
    measure = f"{name[:1].upper()}{name[1:]}" if not name.startswith("kNN") else name
    unit = ", mIoU" if probe[0] in ("segmentation", "retrieval") else ""
    num_better, num_worse = sum(c.is_better for c in levels), sum(c.is_worse for c in levels)
    bounds = f"({points(change.low)} to {points(change.high)})"
    if change.is_better or change.is_worse:
        word = "better" if change.is_better else "worse"
        amount = f"is {word} than {change.second} by {abs(100 * change.value):.1f} points "
    else:
        amount = f"is within noise of {change.second}: {points(change.value)} points "
    return (
        f"{measure}{unit}: {change.first} {amount}{bounds} on {level}, where {change.second} is best; "
        f"of {len(levels)} levels, {num_better} are better and {num_worse} worse beyond noise"
    )
