"""Numbers as cells of a table; a missing number is an empty cell."""

from __future__ import annotations

import math
from typing import Any


def percent(value: Any) -> str:
    """A fraction in percent; empty if it is not a number."""
    return number(None if value is None or not isinstance(value, int | float) else 100 * value, ".1f")


def number(value: Any, form: str) -> str:
    """A number in a format; empty if it is not a finite number."""
    return format(value, form) if isinstance(value, int | float) and math.isfinite(value) else ""


def interval(value: dict[str, Any]) -> str:
    """The 95 % interval of a fraction, in percent; empty if there is none."""
    ends = value.get("interval")
    return f"[{percent(ends[0])}, {percent(ends[1])}]" if isinstance(ends, list) and len(ends) == 2 else ""
