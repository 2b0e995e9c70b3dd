"""Settings in a file of weights or in its folder: arguments, configs, their texts."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from resim.exchange.files.contents import Contents
from resim.exchange.files.pickle_values import PassedOver
from resim.reading import parse_json, read_file

LIST = r"['\"]?\s*[=:]\s*[\[(]([^\])]*)[\])]"
"""The pattern of a list after a name, in the text of a config."""


def settings_in(contents: Contents) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Arguments and settings in a file, of any class."""
    for name in ("args", "opt", "hyper_parameters", "hparams", "cfg", "config"):
        part = contents.data.get(name)
        if isinstance(part, PassedOver):
            yield name, part.entries()
        elif isinstance(part, Mapping):
            yield name, {key: value for key, value in part.items() if isinstance(key, str)}


def all_settings(contents: Contents) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The same, those nested in them for their network, and config.json."""
    for name, part in [("config.json", read_json(contents.path.parent / "config.json")), *settings_in(contents)]:
        yield name, part
        for nested in ("model_args", "model_kwargs", "backbone_args", "backbone_kwargs", "backbone", "model"):
            inner = part.get(nested)
            inner = inner.entries() if isinstance(inner, PassedOver) else inner
            if isinstance(inner, Mapping):
                yield f"{nested} in {name}", inner


def read_json(path: Path) -> Mapping[str, Any]:
    """The object in a JSON file; empty if it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        config = parse_json(read_file(path))
        return config if isinstance(config, dict) else {}
    return {}


def text_in_folder(contents: Contents, name: str) -> str:
    """The text of another file in the same folder; empty if it cannot be read."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return (contents.path.parent / name).read_text(encoding="utf-8")
    return ""


def config_text(contents: Contents) -> str:
    """The text of MMDetection's config in a file; empty where there is none."""
    meta = contents.data.get("meta")
    texts = [value for value in meta.values() if isinstance(value, str)] if isinstance(meta, Mapping) else []
    return next((value for value in texts if re.search(r"\bmean" + LIST, value)), "")
