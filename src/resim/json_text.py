"""JSON from files that others wrote."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is no JSON, or its lists and objects are nested deeper than Python's parser goes (about 1,000
            levels; `json.loads` then raises a RecursionError, which is no ValueError).
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its lists and objects are nested too deeply, more than about 1,000 levels") from None
