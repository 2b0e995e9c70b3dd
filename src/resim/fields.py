"""Checks of a config's fields against their annotations, for values that come from a file or from Python."""

from __future__ import annotations

import dataclasses
import math
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def check_fields(config: Any) -> None:
    """Check every field of a dataclass instance: its type, its choices, and that numbers are finite.

    Raises:
        ValueError: which field, its value, and what was expected.
    """
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        expected = _mismatch(value, hints[field.name])
        if expected:
            raise ValueError(f"{field.name.replace('_', '-')} {value!r}: must be {expected}")


def _mismatch(value: Any, hint: Any) -> str:
    """What was expected instead of `value`; empty if it fits."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Literal:
        return "" if value in inner else f"one of {', '.join(map(str, inner))}"
    if kind in (Union, types.UnionType):
        told = [_mismatch(value, option) for option in inner]
        return "" if "" in told else " or ".join(told)
    if kind is tuple:
        return _tuple_mismatch(value, inner)
    if hint is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return "" if number and math.isfinite(value) else "a finite number"
    if hint is int:
        return "" if isinstance(value, int) and not isinstance(value, bool) else "a whole number"
    return "" if isinstance(value, hint) else {bool: "true or false", str: "text"}.get(hint, f"a {hint.__name__}")


def _tuple_mismatch(value: Any, inner: tuple[Any, ...]) -> str:
    if inner[-1] is Ellipsis:
        fits = isinstance(value, tuple) and not any(_mismatch(item, inner[0]) for item in value)
        return "" if fits else f"a tuple of {inner[0].__name__}"
    fits = isinstance(value, tuple) and len(value) == len(inner)
    fits = fits and not any(_mismatch(item, hint) for item, hint in zip(value, inner, strict=True))
    return "" if fits else f"{len(inner)} finite numbers"
