"""The state of pre-training from any file: weights, key encoder, queue and momentum, so that training can continue."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resim.errors import UserError
from resim.exchange.files.contents import Contents, read_contents, tensors_in
from resim.exchange.files.pickle_values import is_tensor
from resim.exchange.licence import state_licence
from resim.exchange.names import from_published_layout
from resim.exchange.networks.architecture import refuse_infinite
from resim.exchange.queues import fit_queue
from resim.exchange.weights import Weights, form_in, recipe_of, weights_in
from resim.model.resim import ReSim
from resim.runs.config import Recipe
from resim.version import __version__

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True, kw_only=True)
class Imported:
    """The state of pre-training that is made of a file, and which of its entries the file filled."""

    weights: Weights
    recipe: Recipe
    state: dict[str, Any]
    """The content that `runs.checkpoints.save_checkpoint` writes."""
    loaded: tuple[str, ...]
    """Entries of the model (`query...`, `key...`, `queue`) that are taken from the file."""
    copied: tuple[str, ...]
    """Entries of the key encoder that are copies of the query's."""
    new: tuple[str, ...]
    """Entries that start new, from the recipe's seed."""
    left_over: tuple[str, ...]
    """Entries of the file that the model does not have, under the file's names."""
    momentum: int
    """The number of the query encoder's parameters whose momentum is taken from the file."""


def import_state(
    path: str | Path, recipe: Recipe | None = None, prefix: str | None = None, *, licence: str | None = None
) -> Imported:
    """Make a checkpoint of ours from any file that `read_weights` reads.

    Args:
        path: the file.
        recipe: of the training; the file determines its backbone, head width and queue. None: the recipe of the file.
        prefix: of the network to take, where there are several.
        licence: of the weights, where the file proves none.

    Raises:
        UserError: as `read_weights`; a licence that the file contradicts; a recipe that does not fit the file's
            backbone.
    """
    contents = read_contents(path)
    weights = state_licence(weights_in(contents, prefix), licence)
    tensors = _model_tensors(contents, weights, prefix)
    refuse_infinite(weights.path, tensors)
    fitted = _fit_recipe(recipe or recipe_of(weights), weights, tensors)
    return _fill_state(contents, weights, tensors, fitted, prefix)


def start_state(path: str | Path, recipe: Recipe) -> tuple[Imported, str]:
    """The state with which a new run of a recipe begins: entries of a file that fit its network, the others new.

    Args:
        path: any file that `read_weights` reads.
        recipe: of the training; it is not changed.

    Returns:
        The state, and a phrase on the queue, for messages.

    Raises:
        UserError: as `read_weights`; a file of another backbone than the recipe's.
    """
    contents = read_contents(path)
    weights = weights_in(contents)
    theirs, ours = weights.config.backbone, recipe.model.backbone
    if theirs != ours:
        raise UserError(f"{path}: contains a {theirs}, the recipe's backbone is {ours}: set --backbone {theirs}")
    tensors = _model_tensors(contents, weights, None)
    refuse_infinite(weights.path, tensors)
    head = tensors.get("query.head.2.weight")
    head_fits = head is not None and len(head) == recipe.model.dim
    queue, position, description = fit_queue(
        tensors.pop("queue", None), tensors.pop("queue_position", None), recipe.model, head_fits
    )
    if queue is not None and position is not None:
        tensors |= {"queue": queue, "queue_position": position}
    imported = _fill_state(contents, weights, tensors, recipe)
    if weights.recipe is not None:  # our own: licence and origin are those of the file that it started from
        source = contents.data.get("imported")
        imported.state.pop("imported")
        imported.state.update({"imported": source} if source else {})
    return imported, description


def _fill_state(
    contents: Contents, weights: Weights, tensors: Mapping[str, Tensor], recipe: Recipe, prefix: str | None = None
) -> Imported:
    """The state of a recipe's model, filled with the tensors that have its names and shapes."""
    model = ReSim(recipe.model, seed=recipe.optim.seed)
    if any(value.dtype == torch.float64 for value in tensors.values()):
        model = model.double()
    state, loaded, copied = _fill_model(model.state_dict(), tensors, recipe.model.queue_size)
    momentum = _momentum(contents, weights, prefix)
    optimizer, num_momentum = _optimizer_state(model, recipe, momentum)
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
    unused = [name for name in tensors if name.startswith("query.") and name not in loaded]
    return Imported(
        weights=weights,
        recipe=recipe,
        state=content,
        loaded=tuple(loaded),
        copied=tuple(copied),
        new=tuple(name for name in state if name not in loaded and name not in copied),
        left_over=(*weights.left_over, *unused),
        momentum=num_momentum,
    )


def _fill_model(
    state: dict[str, Tensor], tensors: Mapping[str, Tensor], queue_size: int
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """A new model's state_dict with the tensors that fit, the key encoder's other entries copied from the query's.

    Returns:
        The state_dict, the names that are filled, and those of the key encoder that are copies of filled ones.
    """
    loaded = [name for name, value in state.items() if name in tensors and tensors[name].shape == value.shape]
    if "queue" not in loaded:  # a position without its queue has no meaning
        loaded = [name for name in loaded if name != "queue_position"]
    state |= {name: tensors[name].to(state[name].dtype) for name in loaded}
    keys = [name for name in state if name.startswith("key.") and name not in loaded]
    copied = [name for name in keys if name.replace("key.", "query.", 1) in loaded]
    state |= {name: state[name.replace("key.", "query.", 1)].clone() for name in keys}
    if "queue_position" in state:
        state["queue_position"] = state["queue_position"] % queue_size
    return state, loaded, copied


def _model_tensors(contents: Contents, weights: Weights, prefix: str | None) -> dict[str, Tensor]:
    """All entries of the file that a `ReSim` has, under its names and in its layout."""
    query = {f"query.{name}": value for name, value in weights.tensors.items()}
    if weights.recipe is not None and "model" in contents.data:
        state, _ = tensors_in(contents, contents.data["model"])
        return query | {name: value for name, value in state.items() if not name.startswith("query.")}
    if weights.recipe is not None:
        return query
    form = form_in(contents, prefix)
    names = form.model_names()
    state, _ = tensors_in(contents, {name: form.state.entries[name] for name in (*form.keys, *form.queue)})
    tensors = {names[name]: from_published_layout(names[name], value) for name, value in state.items()}
    if "queue" in tensors and tensors["queue"].dim() != 2:
        del tensors["queue"]
    position = tensors.pop("queue_position", None)
    return query | tensors | ({} if position is None or position.dim() else {"queue_position": position.long()})


def _fit_recipe(recipe: Recipe, weights: Weights, tensors: Mapping[str, Tensor]) -> Recipe:
    """The recipe with the file's backbone, width of the head and size of the queue."""
    changes: dict[str, Any] = {"backbone": weights.config.backbone}
    if "head.2.weight" in weights.tensors:
        changes["dim"] = weights.config.dim
    queue = tensors.get("queue")
    if queue is not None and queue.shape[1] == changes.get("dim", recipe.model.dim):
        changes["queue_size"] = len(queue)
    try:
        return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, **changes))
    except ValueError as error:
        raise UserError(f"{weights.path}: recipe {recipe.name} does not fit it: {error}") from None


def _momentum(contents: Contents, weights: Weights, prefix: str | None) -> dict[str, Tensor]:
    """Momentum of the query's parameters under our names, where the file has an optimiser of ours or a published one.

    A published optimiser numbers parameters in the order of its state_dict, the query's first.
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
    return tensors if len(fits) == len(tensors) else {}  # one does not fit: the order is another


def _parameter_names(contents: Contents, weights: Weights, prefix: str | None) -> list[str]:
    """Our names of the query's parameters in the order in which the file's optimiser numbers them."""
    if weights.recipe is not None:
        named = [name.removeprefix("query.") for name in contents.data.get("model", {}) if name.startswith("query.")]
    else:
        form = form_in(contents, prefix)
        if form.name != "published":
            return []
        theirs = [name for short, name in form.state.bare.items() if short.startswith(form.network.prefix)]
        named = [form.ours.get(name, "") for name in theirs if not name.endswith(_STATISTICS)]
        if "" in named:  # a parameter that we do not have: the numbers after it are not known
            named = named[: named.index("")]
    return [name for name in named if name in weights.tensors and not name.endswith(_STATISTICS)]


def _optimizer_state(model: ReSim, recipe: Recipe, momentum: Mapping[str, Tensor]) -> tuple[dict[str, Any], int]:
    """SGD's state_dict over the query's parameters, and how many of them have momentum; the others' is 0."""
    named = dict(model.query.named_parameters())
    optim = recipe.optim
    optimizer = torch.optim.SGD(
        named.values(), lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay, fused=True
    )
    state = optimizer.state_dict()
    filled = [name for name in named if name in momentum and momentum[name].shape == named[name].shape]
    if filled:
        state["state"] = {
            index: {"momentum_buffer": momentum[name] if name in filled else torch.zeros_like(parameter)}
            for index, (name, parameter) in enumerate(named.items())
        }
    return state, len(filled)
