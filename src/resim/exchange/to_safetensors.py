"""Weights under our own names, in safetensors: a file with its model card, or a folder for the Hugging Face hub."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import save_file

from resim.exchange.card import model_card, source_names
from resim.exchange.features import features_of, probe_images
from resim.exchange.targets import Check, Written
from resim.exchange.weights import Weights, read_weights, recipe_of
from resim.version import __version__


def write_safetensors(
    weights: Weights, folder: Path, name: str, metadata: Mapping[str, str], probes: Mapping[str, Any] | None
) -> Written:
    """Write NAME.safetensors, with the recipe in its header, and NAME.md, the card."""
    card = Path(name).with_suffix(".md").name
    written = _write(weights, folder, name, card, metadata, probes)
    return dataclasses.replace(written, load=f"resim.load({name!r})")


def write_hub(
    weights: Weights, folder: Path, name: str, metadata: Mapping[str, str], probes: Mapping[str, Any] | None
) -> Written:
    """Write a folder with model.safetensors, config.json and README.md."""
    (folder / name).mkdir()
    written = _write(weights, folder / name, "model.safetensors", "README.md", metadata, probes)
    config = {"library_name": "resim", "recipe": recipe_of(weights).to_json(), **metadata}
    (folder / name / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    upload = f"huggingface_hub.upload_folder(repo_id='user/name', folder_path={name!r})"
    return dataclasses.replace(written, files=(name,), load=f"resim.load({name!r})", notes=(f"publish it: {upload}",))


def _write(
    weights: Weights, folder: Path, name: str, card: str, metadata: Mapping[str, str], probes: Mapping[str, Any] | None
) -> Written:
    recipe = recipe_of(weights)
    header = {"format": "pt", "resim": __version__, "recipe": json.dumps(recipe.to_json()), **metadata}
    data = weights.data and {**weights.data, "sources": source_names(weights.data)}  # without the paths of this machine
    known = {"step": weights.step, "epoch": weights.epoch, "data": data}
    header |= {key: json.dumps(value) for key, value in known.items() if value is not None}
    save_file({key: value.contiguous() for key, value in weights.tensors.items()}, folder / name, metadata=header)
    text = model_card(weights, recipe, probes=probes)
    (folder / card).write_text(text, encoding="utf-8")
    images = probe_images()
    return Written(
        files=(name, card),
        target=f"resim.load, safetensors {safetensors.__version__}",
        load="",
        checks=(Check(images, features_of(read_weights(folder / name), images)),),
    )
