"""What probes say of networks: a sentence for each probe, and a verdict of three lines, from a `probe.json`.

The level on which two networks are compared is the one on which the *other* network does best, of those that both have:
a choice that does not favour the network that is judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from resim.scores.verdict import Change, Wording, points, verdict

Json = Mapping[str, Any]
_VALUES = ("top1", "accuracy", "miou")
_CLASSES = {"knn": "kNN", "linear": "linear", "linear-sgd": "linear by SGD"}
_WORDING = Wording(
    measures="probes",
    over="test images, not over seeds of the pre-training",
    no_untrained="name random among the networks, the untrained network of the first one",
    no_other="name it among the networks, such as a run's folder, a file, or torchvision:resnet50",
)


def probe_verdict(content: Json) -> tuple[str, str, str]:
    """Three lines on the networks of a `probe.json`, of any version.

    Args:
        content: as `resim.probes.tables.record` makes it.
    """
    networks = _networks(content)
    untrained = reference_of(content)
    trained = [name for name, network in networks.items() if not is_untrained(network)]
    changes = []
    for name in trained:
        for other in [*([untrained] if untrained is not None else []), *trained]:
            if other == untrained or trained.index(name) < trained.index(other):
                changes += [one for one, _ in _by_probe(networks, name, other)]
    return verdict(changes, trained, untrained, _WORDING)


def verdicts(content: Json) -> list[str]:
    """One sentence for each probe and each network but the one that the others are compared with.

    That is the untrained one, or else the first. How many levels are better or worse beyond noise is stated too.

    Args:
        content: as `probe_verdict` takes.
    """
    networks = _networks(content)
    base = reference_of(content) or next(iter(networks), "")
    found = [(name, pair) for name in networks if name != base for pair in _by_probe(networks, name, base)]
    order = list(dict.fromkeys(probe for probe, _, _ in _scores(networks.get(base, {}))))
    found.sort(key=lambda item: order.index(item[1][1][0]))
    return [_sentence(one, *levels) for _, (one, levels) in found]


def reference_of(content: Json) -> str | None:
    """The untrained network that the others are compared with."""
    name = content.get("reference")
    untrained = (name for name, network in _networks(content).items() if is_untrained(network))
    return str(name) if name is not None else next(untrained, None)


def is_untrained(about: Json) -> bool:
    """Whether a network, by what is known of it, was never trained."""
    return str(about.get("kind") or about.get("name", "")).startswith(("untrained", "random"))


def _networks(content: Json) -> dict[str, Json]:
    return {str(n.get("name", "")): n for n in content.get("networks") or () if isinstance(n, dict)}


def _by_probe(
    networks: Mapping[str, Json], name: str, other: str
) -> Iterator[tuple[Change, tuple[tuple[str, ...], Sequence[Change]]]]:
    """For each probe the difference on the level on which the other does best; the probe, and those on all levels."""
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
    """By probe and level what is stored of a network minus another, whichever of the two it is stored with."""
    mine, others = _stored(networks, name, other), _stored(networks, other, name)
    turned = {path: (-value, -high, -low) for path, (value, low, high) in others.items()}
    return turned | mine


def _stored(networks: Mapping[str, Json], name: str, other: str) -> dict[tuple[str, ...], tuple[float, float, float]]:
    network, first = networks[name], next(iter(networks))
    stored = (network.get("minus") or {}).get(other)
    if stored is None and other == first:  # as files were written before there was "minus"
        stored = network.get("less_first")
    elif stored is None and is_untrained(networks[other]):
        stored = network.get("less_reference")
    found = {}
    for path, one in (stored or {}).items():
        numbers = [one.get("difference"), *(one.get("interval") or ())]
        if len(numbers) == 3 and all(isinstance(number, int | float) for number in numbers):
            found[tuple(path.split("/"))] = float(numbers[0]), float(numbers[1]), float(numbers[2])
    return found


def _scores(network: Json) -> Iterator[tuple[tuple[str, ...], str, float]]:
    """The probe, the level and the value of every score that can be compared."""

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
        return f"regions ({probe[1]})"
    if probe[0] == "segmentation":
        return "linear segmentation"
    if probe[0] == "retrieval":
        return f"retrieval ({probe[1]} of the memory)"
    return _CLASSES.get(probe[0], " ".join(probe))


def _sentence(one: Change, probe: tuple[str, ...], levels: Sequence[Change]) -> str:
    name, level = one.measure.rsplit(" on ", 1)
    measure = f"{name[:1].upper()}{name[1:]}" if not name.startswith("kNN") else name
    unit = ", mIoU" if probe[0] in ("segmentation", "retrieval") else ""
    better, worse = sum(c.is_better for c in levels), sum(c.is_worse for c in levels)
    bounds = f"({points(one.low)} to {points(one.high)})"
    if one.is_better or one.is_worse:
        amount = f"is {'better' if one.is_better else 'worse'} than {one.second} by {abs(100 * one.value):.1f} points "
    else:
        amount = f"is within noise of {one.second}: {points(one.value)} points "
    return (
        f"{measure}{unit}: {one.first} {amount}{bounds} on {level}, where {one.second} is best; "
        f"of {len(levels)} levels {better} are better and {worse} worse beyond noise"
    )
