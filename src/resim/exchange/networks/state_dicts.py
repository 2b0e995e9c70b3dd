"""The state_dicts in a file: dictionaries of tensors, at any depth."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from resim.exchange.files.modules import ModuleState
from resim.exchange.files.pickle_values import PassedOver, is_tensor

_WRAPPERS = ("state_dict", "model", "model_state", "model_state_dict", "network")
_MODULES = re.compile(r"conv1|bn1|stem|layer[1-4]|res[2-5]")
_WRAPPING = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


@dataclass(frozen=True, kw_only=True, eq=False)
class State:
    """A dictionary of named tensors."""

    path: tuple[str, ...]
    """The keys from the top of the file to it."""
    entries: Mapping[str, Any]
    """Under the names of the file."""
    bare: Mapping[str, str]
    """Each name without the parts that DistributedDataParallel and torch.compile insert, to the file's name."""

    layers: Mapping[str, PassedOver] = field(default_factory=dict)
    """Of a saved module, its layers under the names of `bare`."""

    def label(self, prefix: str) -> str:
        """The keys from the top of the file, except `state_dict`, and the prefix of a network's names."""
        path = self.path[1:] if self.path[:1] == ("state_dict",) else self.path
        return "".join(f"{part}." for part in path) + prefix


def find_states(data: Mapping[str, Any]) -> list[State]:
    """Each dictionary of tensors in a file; those under the usual keys first, then in the file's order."""
    states: list[State] = []
    visited: set[int] = set()
    pending: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [((), data)]
    while pending:
        path, node = pending.pop(0)
        if id(node) in visited or len(path) > 16:
            continue
        visited.add(id(node))
        children = {str(name): value for name, value in node.items() if isinstance(value, Mapping)}
        named = {name: value for name, value in node.items() if isinstance(name, str)}
        if any(_MODULES.fullmatch(name) for name in children):  # one dictionary per module
            flat = _flatten(named)
            states.append(State(path=path, entries=flat, bare=bare_names(flat)))
            continue
        if any(is_tensor(value) for value in named.values()):
            layers = node.layers if isinstance(node, ModuleState) else {}
            named_layers = {short: layers[name] for short, name in bare_names(layers).items()}
            states.append(State(path=path, entries=named, bare=bare_names(named), layers=named_layers))
        usual = [name for name in _WRAPPERS if name in children]
        order = usual + [name for name in children if name not in usual]
        pending += [((*path, name), children[name]) for name in order]
    return states


def bare_names(names: Mapping[str, Any]) -> dict[str, str]:
    """Names without `module.` and `_orig_mod.` to the names of the file; two that would become equal stay unchanged."""
    bare: dict[str, list[str]] = {}
    for name in names:
        *parents, leaf = name.split(".")
        bare.setdefault(".".join([part for part in parents if part not in _WRAPPING] + [leaf]), []).append(name)
    return {(short if len(full) == 1 else name): name for short, full in bare.items() for name in full}


def _flatten(entries: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    pending: list[tuple[str, Any, int]] = [(name, entries[name], 0) for name in reversed(list(entries))]
    while pending:
        name, value, depth = pending.pop()
        if isinstance(value, Mapping) and depth < 16:
            pending += [(f"{name}.{part}", value[part], depth + 1) for part in reversed(list(value))]
        else:
            flat[name] = value
        if len(flat) + len(pending) > 100_000:
            break
    return flat
