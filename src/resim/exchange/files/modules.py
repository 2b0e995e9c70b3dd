"""Modules in a file, as torch.save(model) and TorchScript write them, replaced by their state_dicts."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from resim.exchange.files.pickle_values import PassedOver, is_tensor

_MAX_DEPTH, _MAX_PARTS = 64, 100_000


class ModuleState(dict[str, Any]):
    """The state_dict of a saved module, and its layers by their names, `layer1.0.conv1`."""

    def __init__(self, state: Mapping[str, Any], layers: Mapping[str, PassedOver]) -> None:
        super().__init__(state)
        self.layers = layers


@dataclass
class _Walk:
    """The values that are replaced, by their identities: a small file can refer to one many times."""

    done: dict[int, Any] = field(default_factory=dict)
    with_tensors: dict[int, Any] = field(default_factory=dict)
    """Those dictionaries among them that contain a tensor at any depth."""


def replace_modules(value: Any) -> Any:
    """The same data with each module replaced by its state_dict, and each object with tensors by a dictionary.

    An object with items, such as a mapping of another class, becomes a dictionary, and so does a list that contains
    dictionaries of tensors, by number. Data below 64 levels are unchanged.
    """
    return _replace(value, 0, _Walk())


def _replace(value: Any, depth: int, walk: _Walk) -> Any:
    if depth > _MAX_DEPTH or not isinstance(value, (PassedOver, dict, list, tuple)) or is_tensor(value):
        return value
    if id(value) in walk.done:
        return walk.done[id(value)]
    walk.done[id(value)] = value
    if isinstance(value, PassedOver):
        result = _replace_object(value, depth, walk)
    elif isinstance(value, dict):
        result = _replace_in(value, depth, walk)
    else:
        result = value
        if any(isinstance(part, (Mapping, PassedOver)) for part in value[:16]):
            named = _replace_in({str(number): part for number, part in enumerate(value)}, depth, walk)
            result = named if any(id(part) in walk.with_tensors for part in named.values()) else value
    walk.done[id(value)] = result
    return result


def _replace_object(value: PassedOver, depth: int, walk: _Walk) -> Any:
    module = _unwrap(value)
    if is_module(module):
        state = state_of_module(module)
        walk.with_tensors[id(state)] = state
        return state
    entries = value.entries() or {str(number): part for number, part in enumerate(value.arguments)}
    result = _replace_in(entries, depth, walk)
    return result if value.items or id(result) in walk.with_tensors else value


def _replace_in(entries: Mapping[Any, Any], depth: int, walk: _Walk) -> dict[Any, Any]:
    result = {name: _replace(part, depth + 1, walk) for name, part in entries.items()}
    if any(is_tensor(part) or id(part) in walk.with_tensors for part in result.values()):
        walk.with_tensors[id(result)] = result
    return result


def _unwrap(value: PassedOver) -> PassedOver:
    """The module that an object without entries is made from, as torch.compile saves one; any other object itself."""
    for _ in range(_MAX_DEPTH):
        inner = value.arguments[0] if value.arguments else None
        if value.entries() or not isinstance(inner, PassedOver) or is_tensor(inner):
            break
        value = inner
    return value


def is_module(value: PassedOver) -> bool:
    """Whether it is a module of PyTorch, by its attributes, or a scripted one, by its class."""
    entries = value.entries()
    return ("_parameters" in entries and "_modules" in entries) or (
        value.kind.startswith("__torch__.") and any(isinstance(part, PassedOver) for part in entries.values())
    )


def state_of_module(module: PassedOver) -> ModuleState:
    """The state_dict that the code of a saved module would return.

    Raises:
        pickle.UnpicklingError: it has more than 100,000 parts.
    """
    state: dict[str, Any] = {}
    layers: dict[str, PassedOver] = {}
    pending: list[tuple[str, PassedOver, int]] = [("", module, 0)]
    count = 0
    while pending:
        prefix, part, depth = pending.pop()
        count += 1
        if count > _MAX_PARTS:
            raise pickle.UnpicklingError(f"it contains a module of more than {_MAX_PARTS} parts")
        layers[prefix.removesuffix(".")] = part
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
                    children.append((f"{prefix}{name}.", _unwrap(value), depth + 1))
                elif is_tensor(value) and name not in transient:
                    state[f"{prefix}{name}"] = value
        pending += [child for child in reversed(children) if child[2] <= _MAX_DEPTH]
    return ModuleState(state, layers)
