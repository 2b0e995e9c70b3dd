"""A verdict of three lines on what was compared: better than untrained, than which other, and what is within noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Change:
    """A score of one network minus that of another on the same images, as a share, with its 95 % interval."""

    first: str
    second: str
    measure: str
    """What was scored, such as "kNN on C5"."""
    value: float
    low: float
    high: float
    digits: int = 1
    """Behind the point, where it is written in points."""

    @property
    def is_better(self) -> bool:
        """Whether the first is better beyond noise: its interval lies above 0."""
        return self.low > 0

    @property
    def is_worse(self) -> bool:
        """Whether the first is worse beyond noise."""
        return self.high < 0

    def __str__(self) -> str:
        return f"{self.first} minus {self.second} {self.amount}"

    @property
    def amount(self) -> str:
        """In points, with the interval."""
        value, low, high = (points(share, self.digits) for share in (self.value, self.low, self.high))
        return f"{value} points ({low} to {high})"

    def turned(self) -> Change:
        """The second minus the first."""
        value, low, high = 0.0 - self.value, 0.0 - self.high, 0.0 - self.low  # the negative of 0 is not written as -0
        return dataclasses.replace(self, first=self.second, second=self.first, value=value, low=low, high=high)


def points(share: float, digits: int = 1) -> str:
    """A difference of shares in points, with its sign; what rounds to zero is +0.0, never -0.0."""
    return f"{round(100 * share, digits) + 0.0:+.{digits}f}"


@dataclass(frozen=True, kw_only=True)
class Wording:
    """What a verdict is about, in words."""

    measures: str
    """Several measures: "probes"."""
    over: str
    """What the intervals are over: "test images"."""
    no_untrained: str
    """What to do where no untrained network was measured."""
    no_other: str
    """What to do where no second network was measured."""


def verdict(
    changes: Sequence[Change], trained: Sequence[str], untrained: str | None, wording: Wording
) -> tuple[str, str, str]:
    """Three lines: better than untrained? better than which other network? and what is within noise.

    Args:
        changes: one for each measure of a pair of networks, either way round.
        trained: names of the networks that are judged, in their order.
        untrained: name of the untrained network that they are compared with.
        wording: what was measured.
    """
    changes = [one.turned() if _is_turned(one, trained, untrained) else one for one in changes]
    against = {name: [one for one in changes if (one.first, one.second) == (name, untrained)] for name in trained}
    pairs = {(a, b): _of(changes, a, b) for i, a in enumerate(trained) for b in trained[i + 1 :]}
    pairs = {pair: of_pair for pair, of_pair in pairs.items() if of_pair or trained[0] in pair}
    if not trained:
        first = "not measured: the networks are all untrained; name one that was trained"
    elif untrained is None:
        first = f"not measured: {wording.no_untrained}"
    else:
        first = "; ".join(f"{name}: {_judged(of_name, wording)}" for name, of_name in against.items())
    second = "; ".join(f"{a} than {b}: {_judged(of_pair, wording)}" for (a, b), of_pair in pairs.items())
    shown = [*(one for of_name in against.values() for one in of_name), *(c for pair in pairs.values() for c in pair)]
    called = "" if untrained is None or "untrained" in untrained else f" ({untrained})"
    return (
        f"1. Better than untrained{called}? {first}.",
        f"2. Better than another? {second or f'not measured: {wording.no_other}'}.",
        f"3. Within noise: {_noise(shown)}. Intervals are of 95 %, over {wording.over}.",
    )


def _is_turned(one: Change, trained: Sequence[str], untrained: str | None) -> bool:
    if one.first == untrained:
        return True
    names = list(trained)
    return one.first in names and one.second in names and names.index(one.first) > names.index(one.second)


def _of(changes: Sequence[Change], first: str, second: str) -> list[Change]:
    return [one for one in changes if (one.first, one.second) == (first, second)]


def _judged(changes: Sequence[Change], wording: Wording) -> str:
    """Whether the first network of a pair is better, by how many measures, and by which most."""
    better = [one for one in changes if one.is_better]
    worse = [one for one in changes if one.is_worse]
    if not changes:
        return "no difference of the two is known"
    if len(changes) == 1:
        (one,) = changes
        answer = "yes" if better else "no, worse" if worse else "not shown, within noise"
        return f"{answer}: {one.measure}, {one}"
    if not better and not worse:
        return f"not shown, all {len(changes)} {wording.measures} are within noise"
    parts = []
    if better:
        most = max(better, key=lambda one: one.value)
        parts.append(f"{'in part' if worse else 'yes'}, by {len(better)} of {len(changes)} {wording.measures}")
        parts[0] += f", most by {most.measure}: {most}"
    if worse:
        most = min(worse, key=lambda one: one.value)
        of = f"{len(worse)}" if better else f"{len(worse)} of {len(changes)} {wording.measures}"
        parts.append(f"{'' if better else 'no, '}worse by {of}, most by {most.measure}: {most}")
    return ", ".join(parts)


def _noise(changes: Sequence[Change]) -> str:
    """The differences whose interval holds 0, pair by pair."""
    if not changes:
        return "nothing was compared"
    within = [one for one in changes if not one.is_better and not one.is_worse]
    if not within:
        return f"none of {len(changes)} differences" if len(changes) > 1 else "no, the interval leaves 0 out"
    pairs = dict.fromkeys((one.first, one.second) for one in within)
    parts = []
    for first, second in pairs:
        text = ", ".join(f"{one.measure} {one.amount}" for one in _of(within, first, second))
        parts.append(f"{first} minus {second}: {text}")
    return "; ".join(parts)
