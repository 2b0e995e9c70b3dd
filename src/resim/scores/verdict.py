"""A verdict in three lines: better than untrained, better than another network, and what is within noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Change:
    """A score of one network minus that of another on the same images, as a fraction, with its 95 % interval."""

    first: str
    second: str
    measure: str
    """What was scored, such as "kNN on C5"."""
    value: float
    low: float
    high: float
    digits: int = 1
    """Decimals of the value in points."""

    @property
    def is_better(self) -> bool:
        """Whether the first is better beyond noise: the interval lies above 0."""
        return self.low > 0

    @property
    def is_worse(self) -> bool:
        """Whether the first is worse beyond noise: the interval lies below 0."""
        return self.high < 0

    def __str__(self) -> str:
        return f"{self.first} minus {self.second} {self.amount}"

    @property
    def amount(self) -> str:
        """The value in points, with the interval."""
        value, low, high = (points(fraction, self.digits) for fraction in (self.value, self.low, self.high))
        return f"{value} points ({low} to {high})"

    def swapped(self) -> Change:
        """The second minus the first."""
        value, low, high = 0.0 - self.value, 0.0 - self.high, 0.0 - self.low
        return dataclasses.replace(self, first=self.second, second=self.first, value=value, low=low, high=high)


def points(share: float, digits: int = 1) -> str:
    """A difference of shares in points, with its sign; what rounds to zero is +0.0, never -0.0."""
    return f"{round(100 * share, digits) + 0.0:+.{digits}f}"


@dataclass(frozen=True, kw_only=True)
class Wording:
    """The words for what a verdict compares."""

    measures: str
    """Plural of the measures, such as "probes"."""
    over: str
    """What the intervals are over, such as "test images"."""
    no_untrained: str
    """What to do if no untrained network was measured."""
    no_other: str
    """What to do if no second network was measured."""


def verdict(
    changes: Sequence[Change], trained: Sequence[str], untrained: str | None, wording: Wording
) -> tuple[str, str, str]:
    """Three lines: better than untrained, better than another network, and what is within noise.

    Args:
        changes: one for each measure of a pair of networks, in either order.
        trained: names of the networks to judge, in their order.
        untrained: name of the untrained network.
        wording: for what was measured.
    """
    changes = [change.swapped() if _is_swapped(change, trained, untrained) else change for change in changes]
    baseline = {name: [change for change in changes if _pair(change) == (name, untrained)] for name in trained}
    pairs = {(a, b): _of_pair(changes, a, b) for i, a in enumerate(trained) for b in trained[i + 1 :]}
    pairs = {pair: of_pair for pair, of_pair in pairs.items() if of_pair or trained[0] in pair}
    if not trained:
        first = "not measured: the networks are all untrained; name one that was trained"
    elif untrained is None:
        first = f"not measured: {wording.no_untrained}"
    else:
        first = "; ".join(f"{name}: {_judgement(of_name, wording)}" for name, of_name in baseline.items())
    second = "; ".join(f"{a} than {b}: {_judgement(of_pair, wording)}" for (a, b), of_pair in pairs.items())
    shown = [change for group in (*baseline.values(), *pairs.values()) for change in group]
    called = "" if untrained is None or "untrained" in untrained else f" ({untrained})"
    return (
        f"1. Better than untrained{called}? {first}.",
        f"2. Better than another? {second or f'not measured: {wording.no_other}'}.",
        f"3. Within noise: {_within_noise(shown)}. Intervals are of 95 %, over {wording.over}.",
    )


def _is_swapped(change: Change, trained: Sequence[str], untrained: str | None) -> bool:
    if change.first == untrained:
        return True
    first, second = _pair(change)
    names = list(trained)
    return first in names and second in names and names.index(first) > names.index(second)


def _pair(change: Change) -> tuple[str, str]:
    return change.first, change.second


def _of_pair(changes: Sequence[Change], first: str, second: str) -> list[Change]:
    return [change for change in changes if _pair(change) == (first, second)]


def _judgement(changes: Sequence[Change], wording: Wording) -> str:
    """Whether the first network of a pair is better, by how many measures, and by which one most."""
    better = [change for change in changes if change.is_better]
    worse = [change for change in changes if change.is_worse]
    if not changes:
        return "not measured"
    if len(changes) == 1:
        (change,) = changes
        answer = "yes" if better else "no, worse" if worse else "not shown, within noise"
        return f"{answer}: {change.measure}, {change}"
    if not better and not worse:
        return f"not shown, all {len(changes)} {wording.measures} are within noise"
    parts = []
    if better:
        most = max(better, key=lambda change: change.value)
        parts.append(f"{'in part' if worse else 'yes'}, by {len(better)} of {len(changes)} {wording.measures}")
        parts[0] += f", most by {most.measure}: {most}"
    if worse:
        most = min(worse, key=lambda change: change.value)
        share = f"{len(worse)}" if better else f"{len(worse)} of {len(changes)} {wording.measures}"
        parts.append(f"{'' if better else 'no, '}worse by {share}, most by {most.measure}: {most}")
    return ", ".join(parts)


def _within_noise(changes: Sequence[Change]) -> str:
    """The differences whose interval contains 0, pair by pair."""
    if not changes:
        return "nothing was compared"
    within = [change for change in changes if not change.is_better and not change.is_worse]
    if not within:
        return f"none of {len(changes)} differences" if len(changes) > 1 else "no, the interval does not contain 0"
    pairs = dict.fromkeys(map(_pair, within))
    parts = []
    for first, second in pairs:
        text = ", ".join(f"{change.measure} {change.amount}" for change in _of_pair(within, first, second))
        parts.append(f"{first} minus {second}: {text}")
    return "; ".join(parts)
