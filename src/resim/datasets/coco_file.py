"""Load a COCO file: its lists of images, annotations and categories."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from resim.datasets.foreign_json import foreign_format
from resim.datasets.repairs import Repairs
from resim.errors import UserError
from resim.reading import read_json

_LARGE = 50_000_000  # bytes, from which on the file is named before it is read


def load_coco(path: Path, repairs: Repairs) -> dict[str, list[dict[str, Any]]]:
    """The lists `images`, `annotations` and `categories`; entries that are not JSON objects are ignored, with a fault.

    `annotations` and `categories` are empty if the file has none.

    Raises:
        UserError: the file cannot be read, is not JSON, or is of another format.
    """
    try:
        if path.stat().st_size > _LARGE and os.environ.get("RANK", "0") == "0":
            print(f"reading {path} ({path.stat().st_size / 1e6:.0f} MB)", flush=True)
        content = read_json(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): name a COCO JSON file") from None
    except UnicodeDecodeError as error:
        place = f"byte {error.start} is {error.object[error.start]:#04x}"
        raise UserError(f"{path}: is not encoded in UTF-8, as JSON must be ({place}): save it as UTF-8") from None
    except ValueError as error:
        raise UserError(f"{path}: is not a valid JSON file ({error}): correct it, or export it again") from None
    foreign = foreign_format(content)
    if foreign:
        raise UserError(f"{path}: not a COCO file but {foreign}")
    assert isinstance(content, dict)
    lists: dict[str, list[dict[str, Any]]] = {}
    for key in ("images", "annotations", "categories"):
        entries = content.get(key)
        entries = [] if entries is None else entries
        if not isinstance(entries, list):
            raise UserError(
                f"{path}: not a COCO file: `{key}` is of type {type(entries).__name__}, but must be a list of objects"
            )
        lists[key] = entries
        if not set(map(type, entries)) <= {dict}:
            for position, entry in enumerate(entries):
                if not isinstance(entry, dict):
                    detail = f"entry {position} of {key} is {str(entry)[:40]}"
                    repairs.add("bad-entry", file=str(path), detail=detail)
            lists[key] = [entry for entry in entries if isinstance(entry, dict)]
    return lists
