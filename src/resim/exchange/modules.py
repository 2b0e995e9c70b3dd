"""Whole modules in a file, as torch.save(model) and TorchScript write them, turned into their state_dicts."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

from resim.exchange.inert import PassedOver, is_tensor

_DEEPEST, _MOST = 64, 100_000


def plain(value: Any) -> Any:
    """The same data with each module in it replaced by its state_dict, and objects with named parts by dictionaries.

    Lists become dictionaries by number where they hold dictionaries of tensors. What is deeper than 64 levels stays.
    """
    return _plain(value, 0, {})


def _plain(value: Any, depth: int, done: dict[int, Any]) -> Any:
    if depth > _DEEPEST or not isinstance(value, (PassedOver, dict, list, tuple)) or is_tensor(value):
        return value
    if id(value) in done:  # what is named twice is converted once: a small file can name much
        return done[id(value)]
    done[id(value)] = value
    if isinstance(value, PassedOver):
        if is_module(value):
            made: Any = state_of_module(value)
        else:
            made = _parts(value.entries(), depth, done) if value.items else value
    elif isinstance(value, dict):
        made = _parts(value, depth, done)
    else:
        made = value
        if any(isinstance(part, (Mapping, PassedOver)) for part in value[:16]):
            named = _parts({str(number): part for number, part in enumerate(value)}, depth, done)
            made = named if any(_has_tensors(part) for part in named.values()) else value
    done[id(value)] = made
    return made


def _parts(entries: Mapping[Any, Any], depth: int, done: dict[int, Any]) -> dict[Any, Any]:
    return {name: _plain(part, depth + 1, done) for name, part in entries.items()}


def _has_tensors(value: object) -> bool:
    return isinstance(value, Mapping) and any(is_tensor(part) for part in value.values())


def is_module(value: PassedOver) -> bool:
    """Whether it is a module of PyTorch's, by its attributes, or a scripted one, by its class."""
    entries = value.entries()
    return ("_parameters" in entries and "_modules" in entries) or (
        value.kind.startswith("__torch__.") and any(isinstance(part, PassedOver) for part in entries.values())
    )


def state_of_module(module: PassedOver) -> dict[str, Any]:
    """The state_dict of a module that was saved whole, which its code would give.

    Raises:
        pickle.UnpicklingError: it has more than 100,000 parts.
    """
    state: dict[str, Any] = {}
    pending: list[tuple[str, PassedOver, int]] = [("", module, 0)]
    count = 0
    while pending:
        prefix, part, depth = pending.pop()
        count += 1
        if count > _MOST:
            raise pickle.UnpicklingError(f"it holds a module of more than {_MOST} parts")
        entries = part.entries()
        transient = entries.get("_non_persistent_buffers_set")
        transient = transient if isinstance(transient, set) else set()
        own = "_parameters" in entries
        groups = [entries.get(name) for name in ("_parameters", "_buffers", "_modules")] if own else [entries]
        children: list[tuple[str, PassedOver, int]] = []
        for group in groups:
            for name, value in group.items() if isinstance(group, Mapping) else ():
                if isinstance(value, PassedOver) and not is_tensor(value):
                    children.append((f"{prefix}{name}.", value, depth + 1))
                elif is_tensor(value) and name not in transient:
                    state[f"{prefix}{name}"] = value
        pending += [child for child in reversed(children) if child[2] <= _DEEPEST]
    return state
