"""Modules in a file, as torch.save(model) and TorchScript write them, replaced by their state_dicts."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

from resim.exchange.files.pickle_values import PassedOver, is_tensor

_MAX_DEPTH, _MAX_PARTS = 64, 100_000


def replace_modules(value: Any) -> Any:
    """The same data with each module replaced by its state_dict, and each object with named parts by a dictionary.

    A list that contains dictionaries of tensors becomes a dictionary by number. Data below 64 levels are unchanged.
    """
    return _replace(value, 0, {})


def _replace(value: Any, depth: int, done: dict[int, Any]) -> Any:
    if depth > _MAX_DEPTH or not isinstance(value, (PassedOver, dict, list, tuple)) or is_tensor(value):
        return value
    if id(value) in done:  # each object is converted once: a small file can refer to it many times
        return done[id(value)]
    done[id(value)] = value
    if isinstance(value, PassedOver):
        if is_module(value):
            result: Any = state_of_module(value)
        else:
            result = _replace_in(value.entries(), depth, done) if value.items else value
    elif isinstance(value, dict):
        result = _replace_in(value, depth, done)
    else:
        result = value
        if any(isinstance(part, (Mapping, PassedOver)) for part in value[:16]):
            named = _replace_in({str(number): part for number, part in enumerate(value)}, depth, done)
            result = named if any(_has_tensors(part) for part in named.values()) else value
    done[id(value)] = result
    return result


def _replace_in(entries: Mapping[Any, Any], depth: int, done: dict[int, Any]) -> dict[Any, Any]:
    return {name: _replace(part, depth + 1, done) for name, part in entries.items()}


def _has_tensors(value: object) -> bool:
    return isinstance(value, Mapping) and any(is_tensor(part) for part in value.values())


def is_module(value: PassedOver) -> bool:
    """Whether it is a module of PyTorch, by its attributes, or a scripted one, by its class."""
    entries = value.entries()
    return ("_parameters" in entries and "_modules" in entries) or (
        value.kind.startswith("__torch__.") and any(isinstance(part, PassedOver) for part in entries.values())
    )


def state_of_module(module: PassedOver) -> dict[str, Any]:
    """The state_dict that the code of a saved module would return.

    Raises:
        pickle.UnpicklingError: it has more than 100,000 parts.
    """
    state: dict[str, Any] = {}
    pending: list[tuple[str, PassedOver, int]] = [("", module, 0)]
    count = 0
    while pending:
        prefix, part, depth = pending.pop()
        count += 1
        if count > _MAX_PARTS:
            raise pickle.UnpicklingError(f"it contains a module of more than {_MAX_PARTS} parts")
        entries = part.entries()
        transient = entries.get("_non_persistent_buffers_set")
        transient = transient if isinstance(transient, set) else set()
        groups = [entries]
        if "_parameters" in entries:
            groups = [entries.get(name) for name in ("_parameters", "_buffers", "_modules")]
        children: list[tuple[str, PassedOver, int]] = []
        for group in groups:
            for name, value in group.items() if isinstance(group, Mapping) else ():
                if isinstance(value, PassedOver) and not is_tensor(value):
                    children.append((f"{prefix}{name}.", value, depth + 1))
                elif is_tensor(value) and name not in transient:
                    state[f"{prefix}{name}"] = value
        pending += [child for child in reversed(children) if child[2] <= _MAX_DEPTH]
    return state
