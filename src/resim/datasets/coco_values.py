"""Single values of a COCO file as the tools of this world write them: ids, flags, numbers and polygons in any dress.

Each function gives the value in COCO's own form, or None where it cannot be worked out without a guess.
"""

from __future__ import annotations

import ast
import contextlib
import json
import math
import re
from collections.abc import Sequence
from typing import Any

from resim.datasets.repair import finite

_WHOLE = re.compile(r"[+-]?\d{1,30}(\.0*)?", re.ASCII)
_TRUE = ("1", "true", "t", "yes", "y")
_FALSE = ("", "0", "false", "f", "no", "n", "none", "null", "nan")


def as_id(value: Any) -> int | str | None:
    """An id: a whole number however it is written (7, 7.0, "7", " 7.0 "), other text without spaces at its ends."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if not isinstance(value, str):
        return None
    text = value.strip()
    return int(text.partition(".")[0]) if _WHOLE.fullmatch(text) else text or None


def as_flag(value: Any) -> bool | None:
    """A flag such as `iscrowd`: a missing or empty one is False; None: neither yes nor no."""
    if value is None:
        return False
    if isinstance(value, str):
        text = value.strip().lower()
        if text in _TRUE or text in _FALSE:
            return text in _TRUE
        number = finite([text])
        return None if number is None else number[0] != 0
    if isinstance(value, int | float):
        return not (math.isnan(value) or value == 0)
    return None


def as_list(value: Any) -> Any:
    """The list that a text holds, as a table of annotations would: "[1, 2]", "1, 2", "1 2"; anything else unchanged."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except ValueError:
            text = text.strip("[]")
    parts = text.replace(",", " ").split()
    return parts if finite(parts) is not None and parts else value


def as_numbers(value: Any, count: int) -> list[float] | None:
    """`count` finite numbers: a list of numbers or of their texts, a text that holds one, or a list around one."""
    value = as_list(value)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    return finite(value, count)


def as_positive(value: Any) -> float | None:
    """A finite number above 0, such as an area."""
    number = None if isinstance(value, bool) else finite([value])
    return number[0] if number and number[0] > 0 else None


def as_segmentation(value: Any) -> tuple[Any, str]:
    """Polygons or RLE in COCO's form, and which other form they had (empty: none); nothing in them is checked.

    Read are also: one flat list of numbers (VIA, supervision), points as pairs ([[x, y], ...]) or as objects
    ({"x": 1, "y": 2}), a list around one RLE, and any of these as a text.
    """
    is_text = isinstance(value, str)
    value = as_list(value)
    form = "text" if is_text and not isinstance(value, str) else ""
    if not isinstance(value, list) or not value:
        return value, form
    if len(value) == 1 and isinstance(value[0], dict) and "counts" in value[0]:
        return value[0], "a list around one RLE"
    if all(map(_is_number, value)):
        return [value], form or "one flat list of numbers"
    if all(map(_is_point, value)):
        return [_flat(value)], form or "points"
    if any(isinstance(part, list) and part and all(map(_is_point, part)) for part in value):
        return [_flat(part) if isinstance(part, list) and all(map(_is_point, part)) else part for part in value], (
            form or "points"
        )
    return value, form


def as_rle(value: dict[str, Any], width: int, height: int) -> dict[str, Any]:
    """RLE as pycocotools takes it: counts as whole numbers or as one text; a size that is missing is the image's."""
    size = value.get("size")
    numbers = finite(as_list(size), 2)
    if numbers is not None and all(number.is_integer() for number in numbers):
        size = [int(number) for number in numbers]
    counts = value.get("counts")
    if isinstance(counts, str) and re.fullmatch(r"b'.*'|b\".*\"", counts, re.DOTALL):  # bytes, as str() writes them
        with contextlib.suppress(ValueError, SyntaxError):
            counts = ast.literal_eval(counts).decode("ascii")
    if isinstance(counts, str) and ("," in counts or " " in counts.strip()):  # neither is a letter of compressed RLE
        counts = as_list(counts)
    if isinstance(counts, list):
        numbers = finite(counts)
        if numbers is not None and all(number.is_integer() for number in numbers):
            counts = [int(number) for number in numbers]
    return {"size": [height, width] if size in (None, [], "") else size, "counts": counts}


def as_keypoints(value: Any, count: int) -> tuple[list[float] | None, str]:
    """3 * `count` numbers (x, y, visibility), and what was made of others; None: they cannot be read.

    Lists of (x, y, v) or (x, y), and x, y pairs without a visibility, are read (a pair other than 0, 0 is visible).
    A keypoint with a number that is missing, NaN or infinite becomes one that is not labelled.
    """
    value = as_list(value)
    if not isinstance(value, list):
        return None, f"keypoints of type {type(value).__name__}"
    if value and all(isinstance(part, list) and len(part) in (2, 3) for part in value):
        value = [number for part in value for number in part]
    if len(value) == 2 * count and count:
        pairs = zip(value[0::2], value[1::2], strict=True)
        value = [number for x, y in pairs for number in (x, y, 0 if finite([x, y]) in (None, [0.0, 0.0]) else 2)]
        said = "x, y pairs without a visibility"
    elif len(value) == 3 * count:
        said = ""
    else:
        return None, f"{len(value)} numbers for {count} keypoints"
    points: list[float] = []
    for at in range(0, 3 * count, 3):
        numbers = finite(value[at : at + 3])
        said = said or ("" if numbers else "a keypoint that is not finite")
        points += numbers or [0.0, 0.0, 0.0]
    return points, said


def what_is_wrong(value: Any, count: int) -> str:
    """Why `as_numbers` finds no `count` numbers in a value, for a message."""
    if isinstance(value, str):
        return f"text {value[:40]!r}"
    if not isinstance(value, list):
        return f"of type {type(value).__name__}"
    if len(value) != count:
        return f"{len(value)} numbers, not {count}" if value else "empty"
    return f"{value}, not finite numbers"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and finite([value]) is not None)


def _is_point(value: Any) -> bool:
    if isinstance(value, dict):
        return "x" in value and "y" in value
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


def _flat(points: Sequence[Any]) -> list[Any]:
    pairs = ((point["x"], point["y"]) if isinstance(point, dict) else point for point in points)
    return [number for pair in pairs for number in pair]
