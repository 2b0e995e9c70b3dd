"""Single values of annotation files in any notation: numbers, ids, flags, polygons, RLE and keypoints.

Each function returns the value in COCO's form, or None if its meaning is not certain.
"""

from __future__ import annotations

import ast
import contextlib
import math
import re
from collections.abc import Sequence
from typing import Any

from resim.reading import parse_json

_WHOLE = re.compile(r"[+-]?\d{1,30}(\.0*)?", re.ASCII)
_TRUE = ("1", "true", "t", "yes", "y")
_NUMBERS = (float, int)
_VISIBILITIES = ("v", "visibility", "visible")
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)
_FALSE = ("", "0", "false", "f", "no", "n", "none", "null", "nan")


def finite_numbers(values: object, count: int | None = None) -> list[float] | None:
    """Numbers as floats; None unless `values` is a list of finite numbers, of length `count` if that is given."""
    if type(values) is not list and (not isinstance(values, Sequence) or isinstance(values, str)):
        return None
    if count is not None and len(values) != count:
        return None
    try:
        numbers: list[float] = list(map(float, values))
    except (TypeError, ValueError, OverflowError):
        return None
    total = sum(numbers)
    # inf - inf and NaN - NaN are not 0; the sum of finite numbers may be infinite
    return numbers if total - total == 0 or all(number - number == 0 for number in numbers) else None


def as_id(value: Any) -> int | str | None:
    """An id: an integer in any notation (7, 7.0, "7", " 7.0 "), or other text, stripped."""
    if type(value) is int:
        return value
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
    """A flag such as `iscrowd`: False if missing or empty, None if neither true nor false."""
    if value is None or value == 0:
        return False
    if isinstance(value, str):
        text = value.strip().lower()
        if text in _TRUE or text in _FALSE:
            return text in _TRUE
        number = finite_numbers([text])
        return None if number is None else number[0] != 0
    if isinstance(value, int | float):
        return not (value != value or value == 0)  # NaN; math.isnan raises for integers of 400 digits
    return None


def as_list(value: Any) -> Any:
    """The list in a text such as "[1, 2]", "1, 2" or "1 2"; any other value unchanged."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text[:1] in ("[", "{"):
        try:
            return parse_json(text)
        except ValueError:
            text = text.strip("[]")
    parts = text.replace(",", " ").split()
    return parts if finite_numbers(parts) is not None and parts else value


def as_numbers(value: Any, count: int) -> list[float] | None:
    """`count` finite numbers, from a list of numbers or of texts, a text that contains one, or a list around one."""
    if type(value) is list and len(value) != 1:
        return finite_numbers(value, count)
    value = as_list(value)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    return finite_numbers(value, count)


def with_decimal_point(text: str) -> str:
    """A number such as 24,5 with a point instead of its comma; any other text unchanged."""
    return text.replace(",", ".") if _DECIMAL_COMMA.fullmatch(text.strip()) else text


def as_positive(value: Any) -> float | None:
    """A finite number above 0, such as an area."""
    if type(value) is float and 0 < value < math.inf:
        return value
    number = None if isinstance(value, bool) else finite_numbers([value])
    return number[0] if number and number[0] > 0 else None


def as_segmentation(value: Any) -> tuple[Any, str]:
    """Polygons or RLE in COCO's form, unchecked; and the name of their form if it is another.

    Other forms are one flat list of numbers (VIA, supervision), points as pairs ([[x, y], ...]) or as objects
    ({"x": 1, "y": 2}), a list around one RLE, and any of these as text.
    """
    is_text = isinstance(value, str)
    value = as_list(value) if is_text else value
    form = "text" if is_text and not isinstance(value, str) else ""
    if not isinstance(value, list) or not value:
        return value, form
    for part in value:
        if type(part) is not list or len(part) <= 2 or type(part[0]) not in _NUMBERS:
            break
    else:
        return value, form  # COCO's own form: what follows would change nothing
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
    """RLE in the form of pycocotools: counts as integers or as one text; a missing size is that of the image."""
    size = value.get("size")
    numbers = finite_numbers(as_list(size), 2)
    if numbers is not None and all(number.is_integer() for number in numbers):
        size = [int(number) for number in numbers]
    counts = value.get("counts")
    if isinstance(counts, str) and re.fullmatch(r"b'.*'|b\".*\"", counts, re.DOTALL):  # the str() of bytes
        with contextlib.suppress(ValueError, SyntaxError):
            counts = ast.literal_eval(counts).decode("ascii")
    if isinstance(counts, str) and ("," in counts or " " in counts.strip()):  # neither occurs in compressed RLE
        counts = as_list(counts)
    if isinstance(counts, list):
        numbers = finite_numbers(counts)
        if numbers is not None and all(number.is_integer() for number in numbers):
            counts = [int(number) for number in numbers]
            if sum(counts) != width * height and all(48 <= count < 112 for count in counts):
                counts = bytes(counts).decode("ascii")  # the letters of compressed RLE, from list(bytes)
    return {"size": [height, width] if size in (None, [], "") else size, "counts": counts}


def as_keypoints(value: Any, count: int) -> tuple[list[float] | None, str]:
    """3 * `count` numbers (x, y, visibility), or None; and the name of their form if it is another.

    Other forms are lists of (x, y, v) or (x, y), objects such as {"x": 1, "y": 2, "v": 2}, and x, y pairs without a
    visibility (a pair other than 0, 0 is visible). A keypoint with a missing, NaN or infinite number becomes one that
    is not labelled.
    """
    value = as_list(value)
    if not isinstance(value, list):
        return None, f"keypoints of type {type(value).__name__}"
    if value and all(isinstance(part, dict) and "x" in part and "y" in part for part in value):
        value = [[part["x"], part["y"], *(part[key] for key in _VISIBILITIES if key in part)] for part in value]
        form = "objects with x and y"
    else:
        form = ""
    if value and all(isinstance(part, list) and len(part) in (2, 3) for part in value):
        value = [number for part in value for number in part]
    if len(value) == 2 * count and count:
        pairs = zip(value[0::2], value[1::2], strict=True)
        value = [
            number for x, y in pairs for number in (x, y, 0 if finite_numbers([x, y]) in (None, [0.0, 0.0]) else 2)
        ]
        form = form or "x, y pairs without a visibility"
    elif len(value) != 3 * count:
        return None, f"{len(value)} numbers for {count} keypoints"
    points: list[float] = []
    for start in range(0, 3 * count, 3):
        numbers = finite_numbers(value[start : start + 3])
        form = form or ("" if numbers else "a keypoint with NaN, infinite or missing numbers")
        points += numbers or [0.0, 0.0, 0.0]
    return points, form


def numbers_fault(value: Any, count: int) -> str:
    """Why `as_numbers` cannot read `count` numbers from a value, for a message."""
    if isinstance(value, str):
        return f"is the text {value[:40]!r}"
    if not isinstance(value, list):
        return f"is of type {type(value).__name__}"
    if len(value) != count:
        return f"has {len(value)} numbers instead of {count}" if value else "is empty"
    return f"is {value}, not {count} finite numbers"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and finite_numbers([value]) is not None)


def _is_point(value: Any) -> bool:
    if isinstance(value, dict):
        return "x" in value and "y" in value
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


def _flat(points: Sequence[Any]) -> list[Any]:
    pairs = ((point["x"], point["y"]) if isinstance(point, dict) else point for point in points)
    return [number for pair in pairs for number in pair]
