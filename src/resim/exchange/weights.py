"""Weights of any program that pre-trains ResNets, under our names: `read_weights(path)`."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from resim.errors import UserError
from resim.exchange.files.contents import Contents, read_contents, tensors_in
from resim.exchange.licence import licence_of_export, licence_of_file, licence_of_run
from resim.exchange.names import add_caffe2_statistics
from resim.exchange.networks.architecture import (
    add_counters,
    check_complete,
    encoder_shapes,
    infer_config,
    refuse_infinite,
    shorten,
)
from resim.exchange.networks.describe import describe_choice, describe_file, describe_other, describe_place
from resim.exchange.networks.input_evidence import infer_input
from resim.exchange.networks.input_forms import fold_input
from resim.exchange.networks.layers import compare_layers, fold_epsilons
from resim.exchange.networks.recognise import Form, recognise
from resim.exchange.networks.state_dicts import find_states
from resim.exchange.networks.strides import refuse_other_strides
from resim.model.backbone import CAFFE
from resim.model.encoder import ModelConfig
from resim.reading import parse_json
from resim.recipes import moco_v2, resim_fpn
from resim.runs.config import Recipe

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The query encoder of a file."""

    path: Path
    kind: str
    """What the file was recognised as, for people."""
    tensors: dict[str, Tensor]
    """Under the names of `Encoder`'s state_dict; backbone, head and FPN are each complete or absent."""
    left_over: tuple[str, ...]
    """Entries of the file that have no counterpart, under its names."""
    licence: str | None
    origin: str | None
    """The source of the weights, where the file states it."""
    recipe: Recipe | None
    """Of our own files, which contain it."""
    config: ModelConfig
    """The network of the tensors; of a foreign file, inferred from names and shapes."""
    step: int | None = None
    """Steps of pre-training, where the file states them."""
    epoch: int | None = None
    data: Mapping[str, Any] | None = None
    """The training data, as our checkpoints record it: `images` (their number), `sources`, `hash`."""
    licence_source: str = ""
    """The evidence for the licence; without a licence, the reason why it is unknown."""
    added: tuple[str, ...] = ()
    """Counters of batches that the file does not have and that are 0 in `tensors`."""
    warnings: tuple[str, ...] = ()
    """Conversions, properties that the file does not state, and which of several networks was taken."""
    passed_over: tuple[str, ...] = ()
    """Classes of the objects in the file that were not read."""


def read_weights(path: str | Path, *, check_finite: bool = True) -> Weights:
    """Read a file of weights, a run's or hub folder, or `torchvision:NAME`. No code in it is run.

    Our own checkpoints and safetensors files; the published ReSim and MoCo checkpoints; Detectron2's backbones and
    detectors; torchvision's and timm's ResNets; torchvision's and MMDetection's detectors; any checkpoint with a
    ResNet below some prefix, under the names of torchvision, Detectron2, Caffe2 or transformers, or by number.

    The `warnings` are logged too, so that every program that reads weights reports them.

    Args:
        path: the file or folder.
        check_finite: refuse our own weights too if they are not finite. (Foreign ones are always refused.)

    Raises:
        UserError: no such file, a damaged one or one with code in it; a network of another kind, an incomplete one, one
            with an entry of another shape or a value that is not finite.
    """
    weights = weights_in(read_contents(path))
    if check_finite:
        refuse_infinite(weights.path, weights.tensors)
    for text in weights.warnings:
        _log.warning("%s: %s", weights.path, text)
    return weights


def weights_in(contents: Contents, prefix: str | None = None) -> Weights:
    """The weights in a file that is already open, of the network below `prefix` where there are several."""
    if is_own(contents):
        if prefix is not None:
            raise UserError(f"{contents.path}: is resim's own, which has one network: leave --prefix out")
        return _read_own_safetensors(contents) if "resim" in contents.metadata else _read_own_checkpoint(contents)
    return _read_foreign(contents, prefix)


def recipe_of(weights: Weights) -> Recipe:
    """The recipe in the file; of foreign weights, ReSim-FPN's where there is an FPN, MoCo v2's where there is none."""
    if weights.recipe is not None:
        return weights.recipe
    recipe = resim_fpn() if weights.config.levels else moco_v2()
    return dataclasses.replace(recipe, model=weights.config)


def is_own(contents: Contents) -> bool:
    """Whether it is a checkpoint of pre-training or a safetensors file of ours."""
    detector = contents.data.get("kind") == "detect"  # it has torchvision's names
    checkpoint = "resim" in contents.data and isinstance(contents.data.get("model"), Mapping) and not detector
    return checkpoint or "resim" in contents.metadata


def form_in(contents: Contents, prefix: str | None = None) -> Form:
    """The form of a foreign file, with the network that is taken.

    Raises:
        UserError: no ResNet; the message describes what the file contains.
    """
    try:
        return recognise(contents.data, prefix)
    except ValueError as error:
        for state in find_states(contents.data)[:1]:
            tensors_in(contents, state.entries)  # raises if the tensors cannot be read
        raise UserError(
            f"{contents.path}: contains {error}; weights of a ResNet with torchvision's or Detectron2's names are read"
        ) from None


def _read_own_checkpoint(contents: Contents) -> Weights:
    data = contents.data
    recipe = _recipe_in(contents.path, data.get("recipe"))
    state, others = tensors_in(contents, data["model"])
    query = {name.removeprefix("query."): value for name, value in state.items() if name.startswith("query.")}
    unknown = [
        name for name in state if not name.startswith(("query.", "key.")) and name not in ("queue", "queue_position")
    ]
    left_over = [f"query.{name}" for name in _remove_unknown(query, recipe.model)] + unknown + others
    check_complete(contents.path, query, recipe.model, all_parts=True)
    step, source, images = data.get("step"), data.get("imported"), data.get("data")
    source = source if isinstance(source, Mapping) else {}
    licence, licence_source = licence_of_run(source)
    return Weights(
        path=contents.path,
        kind=f"resim checkpoint ({recipe.name}, {recipe.model.backbone}, step {_count(step)})",
        tensors=query,
        left_over=tuple(left_over),
        licence=licence,
        licence_source=licence_source,
        origin=_text(source.get("origin")),
        recipe=recipe,
        config=recipe.model,
        step=_count(step),
        epoch=_count(data.get("epoch")),
        data=images if isinstance(images, Mapping) else None,
    )


def _read_own_safetensors(contents: Contents) -> Weights:
    metadata = contents.metadata
    recipe = _recipe_in(contents.path, _json(metadata.get("recipe")))
    tensors, _ = tensors_in(contents, contents.data)
    left_over = _remove_unknown(tensors, recipe.model)
    check_complete(contents.path, tensors, recipe.model, all_parts=True)
    step, images = _json(metadata.get("step")), _json(metadata.get("data"))
    licence, licence_source = licence_of_export(metadata)
    return Weights(
        path=contents.path,
        kind=f"resim safetensors file ({recipe.name}, {recipe.model.backbone}, step {_count(step)})",
        tensors=tensors,
        left_over=tuple(left_over),
        licence=licence,
        licence_source=licence_source,
        origin=metadata.get("origin"),
        recipe=recipe,
        config=recipe.model,
        step=_count(step),
        epoch=_count(_json(metadata.get("epoch"))),
        data=images if isinstance(images, Mapping) else None,
    )


def _read_foreign(contents: Contents, prefix: str | None = None) -> Weights:
    path = contents.path
    form = form_in(contents, prefix)
    refuse_other_strides(contents)
    state, others = tensors_in(contents, form.state.entries, {*form.ours, *form.keys, *form.queue})
    if not any(state[name].numel() for name in form.ours if name in state):
        raise UserError(
            f"{path}: has the names of a network and no numbers, as DeepSpeed's ZeRO stage 3 saves it: zero_to_fp32.py "
            "in the checkpoint's folder makes a complete file"
        )
    tensors, config, left_over = _network_of(path, form, state)
    added = add_counters(tensors, config)
    check_complete(path, tensors, config, hint=describe_other(form))
    refuse_infinite(path, tensors, {ours: name for name, ours in form.ours.items()})
    layers = compare_layers(path, form.network, config.backbone)
    tensors = fold_epsilons(tensors, layers.epsilons)
    form_of_input, warnings = infer_input(contents, form, tensors)
    is_stated = form_of_input is not None and form_of_input.stride_in_1x1
    if layers.stride_in_1x1 or is_stated:
        config = dataclasses.replace(config, backbone=f"{config.backbone}{CAFFE}")
    warnings = [*layers.warnings(config.backbone, is_stated), *warnings]
    if form_of_input is not None:
        tensors = fold_input(tensors, form_of_input)
        warnings = [form_of_input.conversion(config.backbone), *warnings]
    if form.others:
        warnings.append(describe_choice(form, path))
    metadata = contents.metadata or contents.data.get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    author, epoch = contents.data.get("__author__"), _count(contents.data.get("epoch"))
    licence, licence_source = licence_of_file(path, state, metadata, author)
    return Weights(
        path=path,
        kind=describe_file(form, tensors, config, left_over, epoch),
        tensors=tensors,
        left_over=(*left_over, *others),
        licence=licence,
        licence_source=licence_source,
        origin=_text(metadata.get("origin")) or _text(author) or contents.origin,
        recipe=None,
        config=config,
        epoch=epoch,
        added=tuple(added),
        warnings=(*warnings, *form.notes),
        passed_over=contents.passed_over,
    )


def _network_of(
    path: Path, form: Form, state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], ModelConfig, list[str]]:
    """The network of a foreign file under our names, its config, and the names of the entries that are left over.

    Raises:
        UserError: no ResNet of torchvision's, or one with more in its blocks.
    """
    names = {name: form.ours.get(name) for name in state}
    tensors = {ours: state[name] for name, ours in names.items() if ours is not None}
    if form.name == "caffe2":
        tensors = add_caffe2_statistics(tensors)
    try:
        config = infer_config(tensors)
    except ValueError as error:
        raise UserError(
            f"{path}: contains {error}{describe_place(form)}{describe_other(form)}; weights of a ResNet with "
            "torchvision's or Detectron2's names are read"
        ) from None
    unknown = set(_remove_unknown(tensors, config))
    training_state = form.keys.keys() | form.queue.keys()
    left_over = [
        name for name, ours in names.items() if ours in unknown or (ours is None and name not in training_state)
    ]
    surplus = [name for name in left_over if (names[name] or "").startswith("backbone.")]
    if surplus:  # a squeeze, an offset, a bias: without it the same weights compute something else
        raise UserError(
            f"{path}: is no plain {config.backbone}, which has no {shorten(surplus)}{describe_other(form)}; another "
            "network is not read"
        )
    return tensors, config, left_over


def _remove_unknown(tensors: dict[str, Tensor], config: ModelConfig) -> list[str]:
    """Remove the entries that the network does not have; returns their names."""
    shapes = encoder_shapes(config)
    unknown = [name for name in tensors if name not in shapes]
    for name in unknown:
        del tensors[name]
    return unknown


def _recipe_in(path: Path, data: object) -> Recipe:
    try:
        if not isinstance(data, dict):
            raise ValueError("there is none")
        recipe = Recipe.from_json(data)
        encoder_shapes(recipe.model)
        return recipe
    except (ValueError, TypeError, AttributeError, RuntimeError, OverflowError) as error:  # no network has such numbers
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: contains no recipe of this version ({reason})") from None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _count(value: object) -> int | None:
    """A count of steps or epochs; None for any other value, such as an integer of a million digits."""
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63 else None


def _json(text: str | None) -> Any:
    """The value of an entry of a safetensors file's metadata; None if it is no JSON."""
    try:
        return parse_json(text or "null")
    except ValueError:
        return None
