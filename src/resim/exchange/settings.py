"""Settings that a file of weights keeps, or that lie beside it: arguments, configs, their texts."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from resim.exchange.files import Contents
from resim.exchange.inert import PassedOver

LIST = r"['\"]?\s*[=:]\s*[\[(]([^\])]*)[\])]"
"""Of a list after a name, in a config's text."""


def settings_in(contents: Contents) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Arguments and settings in a file, of whatever class they were."""
    for name in ("args", "opt", "hyper_parameters", "hparams", "cfg", "config"):
        part = contents.data.get(name)
        if isinstance(part, PassedOver):
            yield name, part.entries()
        elif isinstance(part, Mapping):
            yield name, {key: value for key, value in part.items() if isinstance(key, str)}


def all_settings(contents: Contents) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The same, what is nested in them for timm's networks, and config.json."""
    for name, part in [("config.json", json_of(contents.path.parent / "config.json")), *settings_in(contents)]:
        yield name, part
        for nested in ("model_args", "model_kwargs"):
            inner = part.get(nested)
            inner = inner.entries() if isinstance(inner, PassedOver) else inner
            if isinstance(inner, Mapping):
                yield f"{name}'s {nested}", inner


def json_of(path: Path) -> Mapping[str, Any]:
    """The object in a JSON file; empty where there is none."""
    with contextlib.suppress(OSError, ValueError):
        config = json.loads(path.read_text(encoding="utf-8"))
        return config if isinstance(config, dict) else {}
    return {}


def text_beside(contents: Contents, name: str) -> str:
    """A text in the file's folder; empty where there is none."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return (contents.path.parent / name).read_text(encoding="utf-8")
    return ""


def config_text(contents: Contents) -> str:
    """The text of MMDetection's config in a file; empty where there is none."""
    meta = contents.data.get("meta")
    texts = [value for value in meta.values() if isinstance(value, str)] if isinstance(meta, Mapping) else []
    return next((value for value in texts if re.search(r"\bmean" + LIST, value)), "")
