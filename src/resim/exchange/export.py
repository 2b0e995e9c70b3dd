"""Weights written in another program's format, and verified in that program before they are put in place."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from resim.errors import UserError
from resim.exchange.card import probes_in_folder, read_probes
from resim.exchange.features import TOLERANCE, differences, features_of
from resim.exchange.fpn_norms import with_norms, without_norms
from resim.exchange.licence import state_licence
from resim.exchange.staging import check_out, move_into_place, staging
from resim.exchange.targets import ENDINGS, FpnNorm, Target, Written
from resim.exchange.to_detectron2 import write_detectron2
from resim.exchange.to_onnx import write_onnx
from resim.exchange.to_safetensors import write_hub, write_safetensors
from resim.exchange.to_timm import write_timm
from resim.exchange.weights import Weights, read_weights, recipe_of
from resim.version import __version__


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The written files, and the differences between the target's features and ours."""

    weights: Weights
    paths: tuple[Path, ...]
    written: Written
    differences: Mapping[str, float] | None
    """Largest difference of each map; None: the target is not installed, and nothing was verified."""
    notes: tuple[str, ...]

    @property
    def left_out(self) -> tuple[str, ...]:
        """Entries of the source that are not in the export, under our names or those of the source."""
        return (*self.written.left_out, *self.weights.left_over)

    @property
    def licence(self) -> str | None:
        """The licence of the weights, proved by their file or stated by the user."""
        return self.weights.licence


def export(
    checkpoint: str | Path, to: Target, out: Path | None = None, *, fpn_norm: FpnNorm = "auto",
    licence: str | None = None, probes: Path | None = None,
) -> Exported:  # fmt: skip
    """Write a checkpoint's query encoder for another program.

    The files are written to a staging folder, loaded by the target's own code, compared with our features on the same
    images, and only then moved into place.

    Args:
        checkpoint: any file that `read_weights` reads.
        to: the target.
        out: file, or folder of `hub`; default: RECIPE-TARGET.ENDING in the working folder.
        fpn_norm: BatchNorm after the FPN's convolutions: as trained (`keep`), folded into them (`plain`) or added
            (`batchnorm`), with the same features; `auto` is `batchnorm` for Detectron2, otherwise `keep`.
        licence: of the weights, where their file proves none.
        probes: JSON of probe results for the model card; None: the results for this file in the run's probe.json.

    Raises:
        UserError: a file, an option or a network that cannot be exported, or features that differ; nothing is written.
    """
    if to not in ENDINGS:
        raise UserError(f"--to {to}: one of {', '.join(ENDINGS)}")
    weights = read_weights(checkpoint)
    results = probes_in_folder(weights) if probes is None else read_probes(probes, weights)
    weights = state_licence(weights, licence)
    out = out or Path(f"{recipe_of(weights).name}-{to}{ENDINGS[to][0]}")
    check_out(out, to, weights.path, {".md": "card"} if to == "safetensors" else None)
    converted, notes = _converted(weights, to, fpn_norm)
    metadata = metadata_of(weights)
    with staging(out) as folder:
        written = _write(converted, to, folder, out.name, metadata, results)
        largest = _compare(weights, written)
        refuse_differences(out, written.target, largest)
        paths = tuple(move_into_place(folder / name, out.parent / name) for name in written.files)
    written = written.placed(out)
    return Exported(
        weights=weights,
        paths=paths,
        written=written,
        differences=largest,
        notes=(*_detector_notes(weights, to), *notes, *written.notes),
    )


def _converted(weights: Weights, to: str, fpn_norm: str) -> tuple[Weights, tuple[str, ...]]:
    """The weights in float32, with or without norms in the FPN as the target needs them, and a note on it."""
    tensors: dict[str, Tensor] = {
        name: value.float() if value.is_floating_point() else value for name, value in weights.tensors.items()
    }
    norm = {"keep": None, "plain": False, "batchnorm": True, "auto": True if to == "detectron2" else None}[fpn_norm]
    weights = dataclasses.replace(weights, tensors=tensors)
    if norm in (None, weights.config.fpn_norm):
        return weights, ()
    config = dataclasses.replace(weights.config, fpn_norm=norm)
    if not any(name.startswith("fpn.") for name in tensors):
        return dataclasses.replace(weights, config=config), ()
    recipe = weights.recipe and dataclasses.replace(weights.recipe, model=config)
    tensors = with_norms(tensors) if norm else without_norms(tensors)
    note = (
        "FPN biases were folded into BatchNorm's shift (scale 1, mean 0, variance 1 - eps): features are the same"
        if norm
        else "the FPN's BatchNorm was folded into its convolutions (running statistics): features are the same"
    )
    return dataclasses.replace(weights, tensors=tensors, config=config, recipe=recipe), (note,)


def _detector_notes(weights: Weights, to: str) -> tuple[str, ...]:
    """The parts of a detector that a target for backbones takes."""
    heads = ("rpn.", "roi_heads.", "proposal_generator.")
    if not any(name.removeprefix("module.").startswith(heads) for name in weights.left_over):
        return ()
    pyramid = sorted({name.split(".")[1] for name in weights.tensors if name.startswith("fpn.")})
    takes_fpn = to in ("torchvision-detection", "detectron2", "safetensors", "hub", "onnx")
    parts = "the backbone"
    if pyramid and takes_fpn:
        parts += f" and of its FPN {', '.join(pyramid)}"
    return (f"the file is a detector: {parts} are exported to {to}, its proposals and heads are left out",)


def metadata_of(weights: Weights) -> dict[str, str]:
    """The metadata of an exported file: its origin, the program that wrote it, its licence if it is known."""
    metadata = {"origin": weights.origin or weights.kind, "made_by": f"resim {__version__}"}
    if weights.licence is None:
        return metadata
    return metadata | {"licence": weights.licence, "licence_source": weights.licence_source}


def _write(
    weights: Weights, to: str, folder: Path, name: str, metadata: Mapping[str, str], probes: Mapping[str, Any] | None
) -> Written:
    if to == "safetensors":
        return write_safetensors(weights, folder, name, metadata, probes)
    if to == "hub":
        return write_hub(weights, folder, name, metadata, probes)

    from resim.exchange.to_torchvision import write_torchvision, write_torchvision_detection  # slow to import

    writers = {
        "torchvision": write_torchvision,
        "torchvision-detection": write_torchvision_detection,
        "detectron2": write_detectron2,
        "timm": write_timm,
        "onnx": write_onnx,
    }
    return writers[to](weights, folder, name, metadata)


def _compare(weights: Weights, written: Written) -> dict[str, float] | None:
    """The largest difference of each map from ours, before any conversion, over all checks."""
    if not written.checks:
        return None
    largest: dict[str, float] = {}
    for check in written.checks:
        ours = features_of(weights, check.images)
        infinite = [name for name, value in ours.items() if not value.isfinite().all()]
        if infinite:
            raise UserError(
                f"{weights.path}: gives features that are not finite ({', '.join(infinite)}); nothing was written"
            )
        for name, value in differences(ours, check.maps).items():
            largest[name] = max(value, largest.get(name, 0.0))
    return largest


def refuse_differences(
    out: Path, target: str, largest: Mapping[str, float] | None, *, outputs: str = "features"
) -> None:
    """Refuse an export whose outputs differ from those of its source.

    Raises:
        UserError: the maps that differ by more than `TOLERANCE`.
    """
    wrong = {name: value for name, value in (largest or {}).items() if not value <= TOLERANCE}
    if wrong:
        values = ", ".join(f"{name} {value:.1e}" for name, value in wrong.items())
        raise UserError(f"--out {out}: not written: {outputs} in {target} differ by more than {TOLERANCE:g}: {values}")
