"""Weights of any program that pre-trains ResNets, under our names: `read_weights(path)`."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from resim.errors import UserError
from resim.exchange.architecture import (
    add_counters,
    check_complete,
    encoder_shapes,
    infer_config,
    refuse_infinite,
    shorten,
)  # fmt: skip
from resim.exchange.evidence import input_of
from resim.exchange.files import Contents, read_contents, tensors_in
from resim.exchange.inputs import fold_input
from resim.exchange.licence import licence_of_export, licence_of_file, licence_of_run
from resim.exchange.recognise import Form, recognise
from resim.exchange.schemes import with_statistics
from resim.exchange.states import find_states
from resim.exchange.strides import refuse_other_strides
from resim.model.backbone import CAFFE
from resim.model.encoder import ModelConfig
from resim.runs.config import Recipe

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The query encoder that a file holds."""

    path: Path
    kind: str
    """What the file was recognised as, for people."""
    tensors: dict[str, Tensor]
    """Under the names of `Encoder`'s state_dict; backbone, head and FPN are each whole or absent."""
    left_over: tuple[str, ...]
    """Entries of the file that have no counterpart, as they are called there."""
    licence: str | None
    origin: str | None
    """Where the weights come from, as far as the file says."""
    recipe: Recipe | None
    """Where the file carries one (our own)."""
    config: ModelConfig
    """The network of the tensors; of a foreign file, what its names and shapes say."""
    step: int | None = None
    """Steps of pre-training, where the file says."""
    epoch: int | None = None
    data: Mapping[str, Any] | None = None
    """What the weights were trained on, as our checkpoints note it: `images` (how many), `sources`, `hash`."""
    licence_source: str = ""
    """Where the licence is taken from; without one, why it is unknown."""
    added: tuple[str, ...] = ()
    """Counters of batches that the file lacks and that stand at 0 in `tensors`."""
    warnings: tuple[str, ...] = ()
    """What was converted on the way, what the file does not say, and which of several networks was taken."""
    passed_over: tuple[str, ...] = ()
    """Classes whose objects in the file were not read."""


def read_weights(path: str | Path, *, check_finite: bool = True) -> Weights:
    """Read a file of weights, a run's or hub folder, or `torchvision:NAME`, and say what it is. No code in it is run.

    Our own checkpoints and safetensors files; the published ReSim and MoCo checkpoints; Detectron2's backbones and
    detectors; torchvision's and timm's ResNets; torchvision's and MMDetection's detectors; any checkpoint that holds a
    ResNet below some prefix, under the names of torchvision, Detectron2, Caffe2 or transformers, or by number.

    What the `warnings` say is logged too, so that no program that reads weights is silent about it.

    Args:
        path: the file or folder.
        check_finite: refuse our own weights too if they are not finite. (Those of others always are.)

    Raises:
        UserError: no such file, a damaged one, one that asks for code, a network of another kind, one that is not
            whole, has an entry of another shape or a value that is not finite.
    """
    weights = weights_in(read_contents(path))
    if check_finite:
        refuse_infinite(weights.path, weights.tensors)
    for text in weights.warnings:
        _log.warning("%s: %s", weights.path, text)
    return weights


def weights_in(contents: Contents, prefix: str | None = None) -> Weights:
    """The same of a file that is open already, and of the network below `prefix` where there are several."""
    if is_own(contents):
        if prefix is not None:
            raise UserError(f"{contents.path}: is resim's own, which has one network: leave --prefix out")
        return _own_safetensors(contents) if "resim" in contents.metadata else _own_checkpoint(contents)
    return _foreign(contents, prefix)


def is_own(contents: Contents) -> bool:
    """Whether it is a checkpoint of pre-training or a safetensors file of ours."""
    detector = contents.data.get("kind") == "detect"  # ours are torchvision's, by name too
    checkpoint = "resim" in contents.data and isinstance(contents.data.get("model"), Mapping) and not detector
    return checkpoint or "resim" in contents.metadata


def form_in(contents: Contents, prefix: str | None = None) -> Form:
    """The network of a foreign file that is taken, and the file's form.

    Raises:
        UserError: there is none, and what there is.
    """
    try:
        return recognise(contents.data, prefix)
    except ValueError as error:
        for state in find_states(contents.data)[:1]:
            tensors_in(contents, state.entries)  # which says what is wrong with them
        raise UserError(
            f"{contents.path}: holds {error}; weights of a ResNet with torchvision's or Detectron2's names are read"
        ) from None


def _own_checkpoint(contents: Contents) -> Weights:
    data = contents.data
    recipe = _recipe_in(contents.path, data.get("recipe"))
    state, others = tensors_in(contents, data["model"])
    query = {name.removeprefix("query."): value for name, value in state.items() if name.startswith("query.")}
    unknown = [
        name for name in state if not name.startswith(("query.", "key.")) and name not in ("queue", "queue_position")
    ]
    left_over = [f"query.{name}" for name in _take_unknown(query, recipe.model)] + unknown + others
    check_complete(contents.path, query, recipe.model, whole=True)
    step, source, images = data.get("step"), data.get("imported"), data.get("data")
    source = source if isinstance(source, Mapping) else {}
    licence, licence_source = licence_of_run(source)
    return Weights(
        path=contents.path,
        kind=f"resim checkpoint ({recipe.name}, {recipe.model.backbone}, step {step})",
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


def _own_safetensors(contents: Contents) -> Weights:
    metadata = contents.metadata
    recipe = _recipe_in(contents.path, _json(metadata.get("recipe")))
    tensors, _ = tensors_in(contents, contents.data)
    left_over = _take_unknown(tensors, recipe.model)
    check_complete(contents.path, tensors, recipe.model, whole=True)
    step, images = _json(metadata.get("step")), _json(metadata.get("data"))
    licence, licence_source = licence_of_export(metadata)
    return Weights(
        path=contents.path,
        kind=f"resim safetensors file ({recipe.name}, {recipe.model.backbone}, step {step})",
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


def _foreign(contents: Contents, prefix: str | None = None) -> Weights:
    path = contents.path
    form = form_in(contents, prefix)
    refuse_other_strides(contents)
    state, others = tensors_in(contents, form.state.entries)
    named = {name: form.ours.get(name) for name in state}
    tensors = {ours: state[name] for name, ours in named.items() if ours is not None}
    if form.name == "caffe2":
        tensors = with_statistics(tensors)
    try:
        config = infer_config(tensors)
    except ValueError as error:
        raise UserError(
            f"{path}: holds {error}{_others(form)}; weights of a ResNet with torchvision's or Detectron2's names are "
            "read"
        ) from None
    unknown = set(_take_unknown(tensors, config))
    training_state = form.keys.keys() | form.queue.keys()
    left_over = [
        name for name, ours in named.items() if ours in unknown or (ours is None and name not in training_state)
    ]
    surplus = [name for name in left_over if (named[name] or "").startswith("backbone.")]
    if surplus:  # a squeeze, an offset, a bias: without it the same weights compute something else
        raise UserError(
            f"{path}: is no plain {config.backbone}, which has no {shorten(surplus)}; another network is not read"
        )
    added = add_counters(tensors, config)
    check_complete(path, tensors, config)
    refuse_infinite(path, tensors, {ours: name for name, ours in named.items() if ours is not None})
    takes, warnings = input_of(contents, form, tensors)
    if takes is not None:
        tensors = fold_input(tensors, takes)
        if takes.stride_in_1x1:
            config = dataclasses.replace(config, backbone=f"{config.backbone}{CAFFE}")
        warnings = [takes.conversion(config.backbone), *warnings]
    if form.others:
        warnings.append(_several(form, path))
    made_by = contents.metadata or contents.data.get("metadata")
    made_by = made_by if isinstance(made_by, Mapping) else {}
    licence, licence_source = licence_of_file(path, state, made_by, contents.data.get("__author__"))
    return Weights(
        path=path,
        kind=_kind(form, contents, tensors, config, left_over),
        tensors=tensors,
        left_over=tuple(left_over + others),
        licence=licence,
        licence_source=licence_source,
        origin=_text(made_by.get("origin")) or _text(contents.data.get("__author__")) or contents.origin,
        recipe=None,
        config=config,
        epoch=_count(contents.data.get("epoch")),
        added=tuple(added),
        warnings=(*warnings, *form.notes),
        passed_over=contents.passed_over,
    )


def _several(form: Form, path: Path) -> str:
    taken = f"below {form.network.label!r}" if form.network.label else "at the top of the file"
    there = ", ".join(repr(label) if label else "its top" for label in form.others[:6]) + (
        ", ..." if len(form.others) > 6 else ""
    )
    other = next((label for label in form.others if label), None)
    if other is None:
        return f"the network {taken} is read; there are others below {there}"
    command = f"resim import {shlex.quote(str(path))} --prefix {shlex.quote(other)} --out {_other_name(path, other)}"
    return (
        f"the network {taken} is read; there are others below {there}: {command} writes one of them to a file that "
        "every verb reads in place of this one"
    )


def _other_name(path: Path, label: str) -> str:
    """A name in this folder for one network of several: that of the file, and what stands before its names."""
    words = re.sub(r"[^A-Za-z0-9]+", "-", f"{path.stem}-{label}").strip("-")
    return f"{words}.pt"


def _others(form: Form) -> str:
    return f" below {form.network.label!r} (others are below {', '.join(form.others)})" if form.others else ""


def _kind(
    form: Form, contents: Contents, tensors: Mapping[str, Tensor], config: ModelConfig, left_over: list[str]
) -> str:
    """What a foreign file is, in words."""
    fpn, head = (any(name.startswith(part) for name in tensors) for part in ("fpn.", "head."))
    pyramid = f" with an FPN{' with BatchNorm' if config.fpn_norm else ''}" if fpn else ""
    if form.name == "published":
        own = {name: short for short, name in form.state.bare.items()}
        unknown_head = any(re.match(r"encoder_q\.(?!fc\.)", own.get(name, name)) for name in left_over)
        program = (
            "ReSim-FPN"
            if fpn
            else "ReSim-C4 or similar"
            if unknown_head
            else "MoCo v2 (or ReSim-C4)"
            if head
            else "MoCo v1"
        )
        epoch = _count(contents.data.get("epoch"))
        after = "" if epoch is None else f", epoch {epoch}"
        return f"published {program} checkpoint ({config.backbone}{pyramid}{after})"
    if form.name == "detectron2":
        detector = any(re.search(r"roi_heads|proposal_generator|(^|\.)head\.", name) for name in left_over)
        return f"Detectron2 {'detector' if detector else 'backbone'} ({config.backbone}{pyramid})"
    if form.name == "torchvision-detection":
        return f"torchvision detector ({config.backbone}{pyramid})"
    if form.name == "mmdet":
        return f"MMDetection's detector ({config.backbone}{pyramid})"
    if form.name == "caffe2":
        return f"Caffe2 backbone ({config.backbone})"
    if form.name == "resim":
        return f"resim weights without their recipe ({config.backbone}{pyramid})"
    below = f" below {form.network.label!r}" if form.network.prefix else ""
    names = {"numbered": "numbered parts (nn.Sequential)", "transformers": "the names of transformers"}.get(
        form.network.scheme.name, "torchvision's names, as torchvision and timm save it"
    )
    return f"ResNet with {names} ({config.backbone}{pyramid}{below})"


def _take_unknown(tensors: dict[str, Tensor], config: ModelConfig) -> list[str]:
    """Take out what the network has no place for; its names."""
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
    except (ValueError, AttributeError, RuntimeError, OverflowError) as error:  # numbers that no network can have
        raise UserError(f"{path}: holds no recipe of this version ({error})") from None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _json(text: str | None) -> Any:
    """A value of a safetensors file's metadata, which are texts; None for what is no JSON."""
    try:
        return json.loads(text or "null")
    except ValueError:
        return None
