"""A whole state of pre-training made of any file: weights, key encoder, queue, momentum. So training can go on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resim.errors import UserError
from resim.exchange.architecture import refuse_infinite
from resim.exchange.files import Contents, read_contents, tensors_in
from resim.exchange.inert import is_tensor
from resim.exchange.licence import state_licence
from resim.exchange.queues import fit_queue
from resim.exchange.recipe_of import recipe_of
from resim.exchange.weights import Weights, form_in, weights_in
from resim.model.resim import ReSim
from resim.runs.config import Recipe
from resim.version import __version__

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What a file gave and what it did not."""

    weights: Weights
    recipe: Recipe
    state: dict[str, Any]
    """What `training.checkpoints.save_checkpoint` writes."""
    loaded: tuple[str, ...]
    """Entries of the model (`query...`, `key...`, `queue`) that came from the file."""
    copied: tuple[str, ...]
    """Entries of the key encoder that are copies of the query's."""
    new: tuple[str, ...]
    """Entries that start new, drawn from the recipe's seed."""
    left_over: tuple[str, ...]
    """Entries of the file without a place here, as they are called there."""
    momentum: int
    """Parameters of the query encoder whose momentum came from the file."""


def import_state(
    path: str | Path, recipe: Recipe | None = None, prefix: str | None = None, *, licence: str | None = None
) -> Imported:
    """Make a checkpoint of ours of any file that `read_weights` reads.

    Args:
        path: the file.
        recipe: what will be trained; its backbone, head width and queue follow the file. None: what the file says.
        prefix: of the network to take, where there are several.
        licence: of the weights, where the file proves none.

    Raises:
        UserError: as `read_weights`; a licence that the file contradicts; a recipe that does not fit the file's
            backbone.
    """
    contents = read_contents(path)
    weights = state_licence(weights_in(contents, prefix), licence)
    found = _found(contents, weights, prefix)
    refuse_infinite(weights.path, found)
    fitted = _fitted(recipe or recipe_of(weights), weights, found)
    return _imported(contents, weights, found, fitted, prefix)


def start_state(path: str | Path, recipe: Recipe) -> tuple[Imported, str]:
    """The state with which a new run of a recipe begins: what fits its network comes from a file, the rest is new.

    Args:
        path: whatever `read_weights` reads.
        recipe: what will be trained; it stays as it is.

    Returns:
        The state, and in a word what became of the file's queue.

    Raises:
        UserError: as `read_weights`; a file of another backbone than the recipe's.
    """
    contents = read_contents(path)
    weights = weights_in(contents)
    theirs, ours = weights.config.backbone, recipe.model.backbone
    if theirs != ours:
        raise UserError(f"{path}: holds a {theirs}, the recipe's backbone is {ours}: set --backbone {theirs}")
    found = _found(contents, weights, None)
    refuse_infinite(weights.path, found)
    head = found.get("query.head.2.weight")
    fits = head is not None and len(head) == recipe.model.dim
    queue, position, what = fit_queue(found.pop("queue", None), found.pop("queue_position", None), recipe.model, fits)
    if queue is not None and position is not None:
        found |= {"queue": queue, "queue_position": position}
    imported = _imported(contents, weights, found, recipe)
    if weights.recipe is not None:  # our own: the licence and origin are those of what it began with
        own = contents.data.get("imported")
        imported.state.pop("imported")
        imported.state.update({"imported": own} if own else {})
    return imported, what


def _imported(
    contents: Contents, weights: Weights, found: Mapping[str, Tensor], recipe: Recipe, prefix: str | None = None
) -> Imported:
    """The state of a recipe's model, filled with what was found under its names and in its shapes."""
    model = ReSim(recipe.model, seed=recipe.optim.seed)
    if any(value.dtype == torch.float64 for value in found.values()):
        model = model.double()
    state = model.state_dict()
    loaded = [name for name, value in state.items() if name in found and found[name].shape == value.shape]
    if "queue" not in loaded:  # a position without its queue means nothing
        loaded = [name for name in loaded if name != "queue_position"]
    state |= {name: found[name].to(state[name].dtype) for name in loaded}
    keys = [name for name in state if name.startswith("key.") and name not in loaded]
    copied = [name for name in keys if name.replace("key.", "query.", 1) in loaded]
    state |= {name: state[name.replace("key.", "query.", 1)].clone() for name in keys}
    if "queue_position" in state:
        state["queue_position"] = state["queue_position"] % recipe.model.queue_size
    momentum = _momentum(contents, weights, prefix)
    optimizer, kept = _optimizer_state(model, recipe, momentum)
    content = {
        "resim": __version__,
        "recipe": recipe.to_json(),
        "step": 0,
        "epoch": weights.epoch or 0,
        "model": state,
        "optimizer": optimizer,
        **({} if weights.data is None else {"data": dict(weights.data)}),
        "imported": {
            "kind": weights.kind,
            "origin": weights.origin or weights.kind,
            "licence": weights.licence,
            "licence_source": weights.licence_source,
        },
    }
    unused = [name for name in found if name.startswith("query.") and name not in loaded]
    return Imported(
        weights=weights,
        recipe=recipe,
        state=content,
        loaded=tuple(loaded),
        copied=tuple(copied),
        new=tuple(name for name in state if name not in loaded and name not in copied),
        left_over=(*weights.left_over, *unused),
        momentum=kept,
    )


def _found(contents: Contents, weights: Weights, prefix: str | None) -> dict[str, Tensor]:
    """Everything in the file that a `ReSim` has, under its names and in its layout."""
    found = {f"query.{name}": value for name, value in weights.tensors.items()}
    if weights.recipe is not None and "model" in contents.data:
        state, _ = tensors_in(contents, contents.data["model"])
        return found | {name: value for name, value in state.items() if not name.startswith("query.")}
    if weights.recipe is not None:
        return found
    form = form_in(contents, prefix)
    wanted = {name: form.state.entries[name] for name in (*form.keys, *form.queue)}
    state, _ = tensors_in(contents, wanted)
    for name, value in state.items():
        if name in form.keys:
            found[f"key.{form.keys[name]}"] = value
        elif form.queue[name] == "queue" and value.dim() == 2:
            found["queue"] = value.T.contiguous()  # theirs is (dim, K)
        elif form.queue[name] == "queue_position" and value.numel() == 1:
            found["queue_position"] = value.reshape(()).long()
    return found


def _fitted(recipe: Recipe, weights: Weights, found: Mapping[str, Tensor]) -> Recipe:
    """The recipe with the backbone, the width of the head and the queue that the file has."""
    changes: dict[str, Any] = {"backbone": weights.config.backbone}
    if "head.2.weight" in weights.tensors:
        changes["dim"] = weights.config.dim
    queue = found.get("queue")
    if queue is not None and queue.shape[1] == changes.get("dim", recipe.model.dim):
        changes["queue_size"] = len(queue)
    try:
        return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, **changes))
    except ValueError as error:
        raise UserError(f"{weights.path}: recipe {recipe.name} cannot take it: {error}") from None


def _momentum(contents: Contents, weights: Weights, prefix: str | None) -> dict[str, Tensor]:
    """Momentum of the query's parameters under our names, where the file has an optimiser of ours or a published one.

    A published optimiser counts parameters in the order of its state_dict, the query's first.
    """
    saved = contents.data.get("optimizer")
    groups = saved.get("param_groups") if isinstance(saved, Mapping) else None
    entries = saved.get("state") if isinstance(saved, Mapping) else None
    if not isinstance(groups, list) or len(groups) != 1 or not isinstance(entries, Mapping):
        return {}
    order = groups[0].get("params") if isinstance(groups[0], Mapping) else None
    names = _parameter_names(contents, weights, prefix)
    if not isinstance(order, list) or len(order) < len(names):
        return {}
    buffers = {
        name: entries[number]["momentum_buffer"]
        for name, number in zip(names, order, strict=False)
        if isinstance(number, int)
        and isinstance(entries.get(number), Mapping)
        and is_tensor(entries[number].get("momentum_buffer"))
    }
    tensors, _ = tensors_in(contents, buffers)
    refuse_infinite(weights.path, tensors, {name: f"the momentum of {name}" for name in tensors})
    fits = {name for name, value in tensors.items() if value.shape == weights.tensors[name].shape}
    return tensors if len(fits) == len(tensors) else {}  # one that does not fit: the order is another


def _parameter_names(contents: Contents, weights: Weights, prefix: str | None) -> list[str]:
    """Our names of the query's parameters in the order in which the file's optimiser counts them."""
    if weights.recipe is not None:
        named = [name.removeprefix("query.") for name in contents.data.get("model", {}) if name.startswith("query.")]
    else:
        form = form_in(contents, prefix)
        if form.name != "published":
            return []
        theirs = [name for short, name in form.state.bare.items() if short.startswith(form.network.prefix)]
        named = [form.ours.get(name, "") for name in theirs if not name.endswith(_STATISTICS)]
        if "" in named:  # a parameter that we have not: what follows it would be counted wrongly
            named = named[: named.index("")]
    return [name for name in named if name in weights.tensors and not name.endswith(_STATISTICS)]


def _optimizer_state(model: ReSim, recipe: Recipe, momentum: Mapping[str, Tensor]) -> tuple[dict[str, Any], int]:
    """SGD's state_dict over the query's parameters; 0 where there is no momentum, as at a first step."""
    named = dict(model.query.named_parameters())
    optim = recipe.optim
    optimizer = torch.optim.SGD(
        named.values(), lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay, fused=True
    )
    state = optimizer.state_dict()
    kept = [name for name in named if name in momentum and momentum[name].shape == named[name].shape]
    if kept:
        state["state"] = {
            index: {"momentum_buffer": momentum[name] if name in kept else torch.zeros_like(parameter)}
            for index, (name, parameter) in enumerate(named.items())
        }
    return state, len(kept)
