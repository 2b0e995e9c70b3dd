"""Trained and untrained encoders by the words that name them on the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from resim.errors import UserError
from resim.exchange.weights import Weights, read_weights
from resim.model.encoder import Encoder, ModelConfig
from resim.model.resim import ReSim
from resim.recipes import RECIPES
from resim.training.config import Recipe

UNTRAINED = "random"


@dataclass(frozen=True, kw_only=True)
class Network:
    """A query encoder in evaluation mode, and how a picture calls it."""

    name: str
    """Short: the run's folder, or what the file is called."""
    told: str
    """What it is: the recipe and how far it was trained, or what a file was recognised as."""
    encoder: Encoder
    region_levels: tuple[str, ...]
    """Levels that the region loss has seen, by their names in `level_maps`; empty for MoCo v2."""
    recipe: Recipe | None
    """Of the run that it is from, where that is known."""


def load_networks(words: Sequence[str]) -> list[Network]:
    """One network a word: a file that `read_weights` reads, a run's folder, or `random`.

    `random` is the untrained network of the first checkpoint's recipe and seed: what that run started from.
    `random:RECIPE` names another recipe.

    Raises:
        UserError: no word, a file that holds no encoder, or a recipe that there is not.
    """
    if not words:
        raise UserError("no checkpoint: name at least one file, run folder, or 'random'")
    trained = {word: load_network(word) for word in dict.fromkeys(words) if not _is_untrained(word)}
    first = next((network.recipe for network in trained.values() if network.recipe), None)
    networks = [trained[word] if word in trained else _untrained(word, first) for word in words]
    names = [network.name for network in networks]
    return [
        dataclasses.replace(network, name=word) if names.count(network.name) > 1 else network
        for network, word in zip(networks, words, strict=True)
    ]


def load_encoder(path: str | Path) -> Encoder:
    """The query encoder of a file or a run's folder, in evaluation mode.

    Raises:
        UserError: no such file, or none that holds an encoder.
    """
    return load_network(path).encoder


def load_network(path: str | Path) -> Network:
    """The same with its name and recipe."""
    weights = read_weights(path)
    with torch.random.fork_rng(devices=[]):
        encoder = Encoder(weights.config)
    encoder.load_state_dict(weights.tensors, strict=False)  # read_weights has checked: only a head may be missing
    told = weights.kind
    if weights.recipe is not None:
        steps = "" if weights.step is None else f", step {weights.step:,}"
        told = f"{weights.recipe.name}, {weights.config.backbone}{steps}"
    return Network(
        name=_short_name(weights),
        told=told,
        encoder=encoder.eval(),
        region_levels=_region_levels(weights.config),
        recipe=weights.recipe,
    )


def untrained_network(recipe: Recipe) -> Network:
    """The network from which a run of this recipe starts."""
    return Network(
        name="untrained",
        told=f"{recipe.name}, {recipe.model.backbone}, seed {recipe.optim.seed}, step 0",
        encoder=ReSim(recipe.model, seed=recipe.optim.seed).query.eval(),
        region_levels=_region_levels(recipe.model),
        recipe=recipe,
    )


def _region_levels(config: ModelConfig) -> tuple[str, ...]:
    return tuple(level.name if level.from_fpn else f"{level.name}+conv" for level in config.levels)


def _is_untrained(word: str) -> bool:
    return word == UNTRAINED or word.startswith(f"{UNTRAINED}:")


def _untrained(word: str, first: Recipe | None) -> Network:
    name = word.partition(":")[2]
    if not name:
        return untrained_network(first or RECIPES["resim-fpn"]())
    if name not in RECIPES:
        raise UserError(f"{word}: no recipe {name!r}: one of {', '.join(RECIPES)}")
    return untrained_network(RECIPES[name]())


def _short_name(weights: Weights) -> str:
    """The run's folder for its last checkpoint, with the file's name for another."""
    file = weights.path.resolve()
    if file.parent.name != "checkpoints":
        return file.stem
    run = file.parent.parent.name
    return run if file.stem == "last" else f"{run}, {file.stem}"
