"""Trained and untrained encoders by the words that name them on the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from resim.errors import UserError
from resim.model.encoder import Encoder, ModelConfig
from resim.model.resim import ReSim
from resim.recipes import RECIPES
from resim.training.checkpoints import load_checkpoint
from resim.training.config import Recipe

UNTRAINED = "random"


@dataclass(frozen=True, kw_only=True)
class Network:
    """A query encoder in evaluation mode, and how a picture calls it."""

    name: str
    """Short: the run's folder, or what the file is called."""
    told: str
    """What it is: the recipe and how far it was trained."""
    encoder: Encoder
    region_levels: tuple[str, ...]
    """Levels that the region loss has seen, by their names in `level_maps`; empty for MoCo v2."""
    recipe: Recipe | None
    """Of the run that it is from, where that is known."""


def load_networks(words: Sequence[str]) -> list[Network]:
    """One network a word: a checkpoint, a run's folder, or `random`.

    `random` is the untrained network of the first checkpoint's recipe and seed, that is what this run started from;
    `random:RECIPE` names another recipe.

    Raises:
        UserError: no word, a file that is no checkpoint, or a recipe that there is not.
    """
    if not words:
        raise UserError("no checkpoint: name at least one file, run folder, or 'random'")
    trained = {word: load_network(word) for word in dict.fromkeys(words) if not _is_untrained(word)}
    first = next((network.recipe for network in trained.values() if network.recipe), None)
    networks = [trained[word] if word in trained else _untrained(word, first) for word in words]
    return _tell_apart(networks, words)


def load_encoder(path: str | Path) -> Encoder:
    """The query encoder of a checkpoint, in evaluation mode.

    Raises:
        UserError: no such file, or none that holds an encoder.
    """
    return load_network(path).encoder


def load_network(path: str | Path) -> Network:
    """The query encoder of a checkpoint or of a run's folder (its last checkpoint).

    Raises:
        UserError: no such file, or none that holds an encoder.
    """
    file = checkpoint_file(path)
    state = load_checkpoint(file)
    recipe = _recipe_of(state, file)
    with torch.random.fork_rng(devices=[]):
        encoder = Encoder(recipe.model)
    try:
        tensors = {name.removeprefix("query."): t for name, t in state["model"].items() if name.startswith("query.")}
        encoder.load_state_dict(tensors)
    except (AttributeError, KeyError, RuntimeError) as error:
        raise UserError(f"{file}: does not fit its own recipe ({str(error).splitlines()[0][:120]})") from None
    told = f"{recipe.name}, {recipe.model.backbone}, after {state.get('epoch', '?')} of {recipe.optim.epochs} epochs"
    return _network(encoder, recipe, name=_short_name(file), told=told)


def checkpoint_file(path: str | Path) -> Path:
    """The file itself, or the last checkpoint of a run's folder.

    Raises:
        UserError: a folder without a checkpoint.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    last = path / "checkpoints" / "last.pt"
    if not last.exists():
        raise UserError(f"{path}: is a folder without checkpoints/last.pt: name a checkpoint or a run's folder")
    return last


def untrained_network(recipe: Recipe) -> Network:
    """The network from which a run of this recipe starts."""
    told = f"{recipe.name}, {recipe.model.backbone}, seed {recipe.optim.seed}, before the first step"
    return _network(ReSim(recipe.model, seed=recipe.optim.seed).query, recipe, name="untrained", told=told)


def _network(encoder: Encoder, recipe: Recipe, *, name: str, told: str) -> Network:
    return Network(
        name=name, told=told, encoder=encoder.eval(), region_levels=_region_levels(recipe.model), recipe=recipe
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


def _recipe_of(state: dict[str, Any], file: Path) -> Recipe:
    recipe = state.get("recipe")
    if not isinstance(recipe, dict):
        raise UserError(f"{file}: holds no recipe, so its network is not known")
    try:
        return Recipe.from_json(recipe)
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None


def _short_name(file: Path) -> str:
    """The run's folder for its last checkpoint, with the file's name for another."""
    parent = file.resolve().parent
    if parent.name != "checkpoints":
        return file.stem
    return parent.parent.name if file.stem == "last" else f"{parent.parent.name}, {file.stem}"


def _tell_apart(networks: list[Network], words: Sequence[str]) -> list[Network]:
    """Networks of the same short name by the words that the user gave."""
    names = [network.name for network in networks]
    return [
        dataclasses.replace(network, name=word) if names.count(network.name) > 1 else network
        for network, word in zip(networks, words, strict=True)
    ]
