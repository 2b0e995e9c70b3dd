"""A whole detector, heads and all, written for torchvision, as safetensors or for the hub, and verified there."""

from __future__ import annotations

import dataclasses
import json
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from resim.datasets.validation_split import recorded_split
from resim.detection.agreement import agreement, raw_images, settings
from resim.detection.card import detector_card, held_out_words
from resim.detection.checkpoint import TrainedDetector, description_of, load_detector
from resim.detection.config import DetectRecipe
from resim.detection.evaluate import read_scores
from resim.detection.torchvision_patches import TORCHVISION_BETA
from resim.detection.torchvision_source import FIRST_LINE, torchvision_source
from resim.errors import UserError
from resim.exchange.export import Exported, metadata_of, refuse_differences
from resim.exchange.features import TOLERANCE
from resim.exchange.fpn_norms import with_norms, without_norms
from resim.exchange.licence import state_licence
from resim.exchange.names import from_torchvision_detection, to_torchvision_detection
from resim.exchange.staging import check_out, move_into_place, staging
from resim.exchange.targets import ENDINGS, FpnNorm, Target, Written
from resim.exchange.weights import Weights, read_weights


def export_detector(
    path: str | Path, to: Target, out: Path | None = None, *, fpn_norm: FpnNorm = "auto", licence: str | None = None
) -> Exported:
    """Write a detector for another program: its weights, and a Python file that builds it from torchvision alone.

    The files are written to a temporary folder; the Python file is run, both detectors are fed the same raw images, and
    maps and detections are compared before anything is moved into place.

    Args:
        path: a fine-tuning's folder or checkpoint, or an export of one.
        to: one of `WHOLE`.
        out: file, or folder of `hub`; default: RECIPE-TARGET.ENDING in the working folder.
        fpn_norm: BatchNorm after the FPN's convolutions: as trained (`auto`, `keep`), folded away (`plain`) or put in
            (`batchnorm`), with the same detections.
        licence: of the weights, where their file proves none.

    Raises:
        UserError: a file, an option or a place that cannot be used, or detections that differ; nothing is written.
    """
    weights = state_licence(read_weights(path), licence)
    detector = load_detector(path)
    config = detector.recipe.detector
    if not weights.origin:
        kind = f"resim detector ({detector.recipe.name}, {config.backbone}, step {detector.step})"
        weights = dataclasses.replace(weights, origin=kind)
    out = out or Path(f"{detector.recipe.name}-{to}{ENDINGS[to][0]}")
    companions = {} if to == "hub" else {".py": "Python file"} | ({".md": "card"} if to == "safetensors" else {})
    check_out(out, to, weights.path, companions)
    _check_python_file(out, to)
    state, recipe, notes = _converted(detector, fpn_norm)
    wild = [name for name, value in state.items() if not value.isfinite().all()]
    if wild:
        raise UserError(f"{weights.path}: {wild[0]} is not finite ({len(wild)} such entries); nothing was written")
    with staging(out) as folder:
        if to == "hub":
            (folder / out.name).mkdir()
        written = _write(detector, recipe, state, weights, folder, out, to)
        model = _built(folder, written, to)
        largest = _compare(detector, model, attempts=1 if recipe == detector.recipe else 3)
        _check_settings(out, detector.model, model)
        refuse_differences(out, written.target, largest, outputs="features or detections")
        if to != "torchvision-detection":
            _check_reading(out, folder / written.files[0], state)
        paths = tuple(move_into_place(folder / name, out.parent / name) for name in written.files)
    written = written.placed(out)
    return Exported(
        weights=dataclasses.replace(weights, left_over=()),
        paths=paths,
        written=written,
        differences=largest,
        notes=(*notes, *_training_notes(recipe), *written.notes),
    )


def _check_python_file(out: Path, to: str) -> None:
    """Raise if a Python file that no export wrote is in the place of ours."""
    path = out.with_suffix(".py")
    if to != "hub" and path.is_file() and not path.read_bytes().startswith(FIRST_LINE.encode()):
        raise UserError(f"--out {out}: its Python file would replace {path}: name another file")


def _converted(detector: TrainedDetector, fpn_norm: FpnNorm) -> tuple[dict[str, Tensor], DetectRecipe, tuple[str, ...]]:
    """The state in float32 with the norms that `fpn_norm` names, its recipe, and notes on the conversion."""
    state = {
        name: (value.float() if value.is_floating_point() else value).contiguous()
        for name, value in detector.model.state_dict().items()
    }
    config = detector.recipe.detector
    wanted = {"plain": False, "batchnorm": True}.get(fpn_norm, config.fpn_norm)
    if config.neck == "c4" or wanted == config.fpn_norm:
        return state, detector.recipe, ()
    places = {
        name: ours
        for name in state
        if name.startswith("backbone.fpn.")
        and (ours := from_torchvision_detection(name, fpn_norm=config.fpn_norm)) is not None
    }
    pyramid = {ours: state[name] for name, ours in places.items()}
    pyramid = with_norms(pyramid) if wanted else without_norms(pyramid)
    named = {to_torchvision_detection(ours): value for ours, value in pyramid.items()}
    if config.norm == "frozen":  # fixed norms count no batches
        named = {name: value for name, value in named.items() if not str(name).endswith("num_batches_tracked")}
    state = {name: value for name, value in state.items() if name not in places}
    state |= {name: value for name, value in named.items() if name is not None}
    recipe = dataclasses.replace(detector.recipe, detector=dataclasses.replace(config, fpn_norm=wanted))
    note = (
        "FPN biases were folded into BatchNorm's shift (scale 1, mean 0, variance 1 - eps)"
        if wanted
        else "the FPN's BatchNorm was folded into its convolutions (running statistics)"
    )
    return state, recipe, (f"{note}: detections in evaluation are the same",)


def _training_notes(recipe: DetectRecipe) -> tuple[str, ...]:
    """How torchvision's detector would differ if it were trained further."""
    config = recipe.detector
    notes = ["the optimiser's state and the run's log stay in the run's folder"]
    betas = {"RPN": config.rpn_beta, "box head": config.box_beta}
    for part, beta in betas.items():
        if beta != TORCHVISION_BETA:
            notes.append(f"trained further, torchvision's {part} has a smooth L1 with beta 1/9, not {beta:g}")
    if config.frozen_stages and config.norm != "frozen":
        notes.append(
            f"norms of the {config.frozen_stages} stages that were fixed are BatchNorm there, the same in evaluation"
        )
    return tuple(notes)


def _write(
    detector: TrainedDetector, recipe: DetectRecipe, state: Mapping[str, Tensor], weights: Weights, folder: Path,
    out: Path, to: Target,
) -> Written:  # fmt: skip
    description = description_of(detector, recipe)
    split = recorded_split([_run_folder(weights.path)])
    held_out = {} if split is None else {"held_out": held_out_words(split)}
    metadata = metadata_of(weights) | held_out | {"kind": "detect", "detector": json.dumps(description)}
    place, name, loader = folder, out.name, out.with_suffix(".py").name
    if to == "hub":
        place, name, loader = folder / out.name, "model.safetensors", "detector.py"
    if name.endswith(".safetensors"):
        save_file(dict(state), place / name, metadata={"format": "pt", **metadata})
    else:
        content = {"resim": metadata["made_by"], "kind": "detect", "state_dict": dict(state), "metadata": metadata}
        torch.save(content, place / name)
    (place / loader).write_text(torchvision_source(detector, recipe, name), encoding="utf-8")
    files = [out.name, loader]
    target = f"torchvision {torchvision.__version__}, {type(detector.model).__name__} on {recipe.detector.backbone}"
    load = f"import runpy; model = runpy.run_path({str(out.with_suffix('.py'))!r})['load_detector']()"
    notes: tuple[str, ...] = ()
    if to != "torchvision-detection":
        card = "README.md" if to == "hub" else out.with_suffix(".md").name
        text = detector_card(
            detector, recipe, weights, _scores(weights.path, detector.step), loader=loader, split=split
        )
        (place / card).write_text(text, encoding="utf-8")
        files.append(card)
        target += f", and resim.load_detector, safetensors {safetensors.__version__}"
        load = f"import resim; model = resim.load_detector({out.name!r}).model"
    if to == "hub":
        config = {"library_name": "resim", **metadata, "detector": description}
        (place / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        notes = (f"publish it: huggingface_hub.upload_folder(repo_id='user/name', folder_path={out.name!r})",)
        files = [out.name]
    return Written(files=tuple(files), target=target, load=load, checks=(), notes=notes)


def _run_folder(checkpoint: Path) -> Path:
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def _scores(checkpoint: Path, step: int) -> dict[str, Any] | None:
    """What the run's last evaluation says of this step."""
    return next((line for line in read_scores(_run_folder(checkpoint)) if line.get("step") == step), None)


def _built(folder: Path, written: Written, to: str) -> GeneralizedRCNN:
    """The detector that the exported Python file builds and loads."""
    path = folder / written.files[0] / "detector.py" if to == "hub" else folder / written.files[1]
    return runpy.run_path(str(path))["load_detector"]()


def _compare(detector: TrainedDetector, model: GeneralizedRCNN, *, attempts: int) -> dict[str, float]:
    """The differences on a pair of images; where weights were folded and so rounded, on the best of some pairs.

    A rounding may turn the choice between two overlapping boxes on one pair of images; a fault shows on every pair.
    """
    best: dict[str, float] = {}
    for seed in range(attempts):
        differences = agreement(detector.model, model, raw_images(seed))
        if not best or max(differences.values()) < max(best.values()):
            best = differences
        if max(best.values()) <= TOLERANCE:
            break
    return best


def _check_settings(out: Path, ours: GeneralizedRCNN, theirs: GeneralizedRCNN) -> None:
    mine, other = settings(ours), settings(theirs)
    wrong = [f"{name} {other[name]}, not {mine[name]}" for name in mine if mine[name] != other[name]]
    if wrong:
        raise UserError(f"--out {out}: not written: in torchvision it has {'; '.join(wrong)}")


def _check_reading(out: Path, path: Path, state: Mapping[str, Tensor]) -> None:
    """Raise if `load_detector` does not read the weights as they were written."""
    read = load_detector(path).model.state_dict()
    different = [name for name in state if name not in read or not read[name].equal(state[name])]
    if different:
        raise UserError(f"--out {out}: not written: {different[0]} was not read as it was written")
