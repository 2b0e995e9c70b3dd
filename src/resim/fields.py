"""Checks of a config's fields against their annotations: types, choices and bounds.

A bound stands next to its field, once: `epochs: Annotated[int, AtLeast(1)] = 200`. A tuple has the bounds of its items:
`betas: tuple[Share, Share]`, where `Share = Annotated[float, AtLeast(0), AtMost(1)]`.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Bound:
    """A limit of a number. Its subclasses say on which side of the limit the number must lie."""

    limit: float
    unit: str = ""
    """Unit of the number, for the message."""
    words: ClassVar[str]
    is_met: ClassVar[Callable[[float, float], bool]]
    """Compares a number with the limit."""

    def __str__(self) -> str:
        return f"{self.words} {self.limit} {self.unit}".rstrip()


class AtLeast(Bound):
    """The number is `limit` or more."""

    words = "at least"
    is_met = staticmethod(operator.ge)


class AtMost(Bound):
    """The number is `limit` or less."""

    words = "at most"
    is_met = staticmethod(operator.le)


class Above(Bound):
    """The number is more than `limit`."""

    words = "above"
    is_met = staticmethod(operator.gt)


class Below(Bound):
    """The number is less than `limit`."""

    words = "below"
    is_met = staticmethod(operator.lt)


Positive = Annotated[float, Above(0)]
"""A number above 0."""
Share = Annotated[float, AtLeast(0), AtMost(1)]
"""A number in [0, 1]: a share, or a probability."""
PositiveShare = Annotated[float, Above(0), AtMost(1)]
"""A number in (0, 1]."""
Decay = Annotated[float, AtLeast(0), Below(1)]
"""A number in [0, 1), such as the decay of a running mean."""
Seed = Annotated[int, AtLeast(0), Below(2**63)]
"""A seed of random numbers."""


def check_fields(config: Any) -> None:
    """Check every field of a dataclass instance: its type, its choices, that numbers are finite, and its bounds.

    Raises:
        ValueError: which field, its value, and what was expected.
    """
    hints = get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value, hint, name = getattr(config, field.name), hints[field.name], field.name.replace("_", "-")
        expected = _mismatch(value, hint)
        if expected:
            raise ValueError(f"{name} {_shown(value)}: must be {expected}")
        exceeded = _exceeded_bound(value, hint)
        if exceeded is not None and isinstance(value, tuple):
            raise ValueError(f"{name} {' '.join(_shown(item, str) for item in value)}: each must be {exceeded}")
        if exceeded is not None:
            raise ValueError(f"{name} {_shown(value, str)}: must be {exceeded}")


def _mismatch(value: Any, hint: Any) -> str:
    """What was expected instead of `value`; empty if it fits. Bounds are not compared."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return _mismatch(value, inner[0])
    if kind is Literal:
        return "" if value in inner else f"one of {', '.join(map(str, inner))}"
    if kind in (Union, types.UnionType):
        mismatches = [_mismatch(value, option) for option in inner]
        return "" if "" in mismatches else " or ".join(mismatches)
    if kind is tuple:
        return _tuple_mismatch(value, inner)
    if hint is float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return "" if is_number and _is_finite(value) else "a finite number"
    if hint is int:
        return "" if isinstance(value, int) and not isinstance(value, bool) else "a whole number"
    return "" if isinstance(value, hint) else {bool: "true or false", str: "text"}.get(hint, f"a {hint.__name__}")


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond the largest float
        return False


def _shown(value: Any, write: Callable[[Any], str] = repr) -> str:
    """A value in a message; Python prints no whole number of more than 4,300 digits."""
    try:
        text = write(value)
    except ValueError:
        return "with a number of thousands of digits"
    return text if len(text) <= 200 else f"{text[:200]}..."


def _tuple_mismatch(value: Any, inner: tuple[Any, ...]) -> str:
    if inner[-1] is Ellipsis:
        fits = isinstance(value, tuple) and not any(_mismatch(item, inner[0]) for item in value)
        return "" if fits else f"a tuple of {_plain(inner[0]).__name__}"
    fits = isinstance(value, tuple) and len(value) == len(inner)
    fits = fits and not any(_mismatch(item, hint) for item, hint in zip(value, inner, strict=True))
    return "" if fits else f"{len(inner)} finite numbers"


def _plain(hint: Any) -> Any:
    """The type of an annotation without its bounds."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _exceeded_bound(value: Any, hint: Any) -> Bound | None:
    """The first bound that `value`, or one of its items, does not meet. The value is of the hint's type."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Annotated:
        bounds = (bound for bound in inner[1:] if isinstance(bound, Bound) and not bound.is_met(value, bound.limit))
        return next(bounds, None)
    if kind is tuple:
        hints = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        exceeded = (_exceeded_bound(item, item_hint) for item, item_hint in zip(value, hints, strict=True))
        return next((bound for bound in exceeded if bound is not None), None)
    return None
