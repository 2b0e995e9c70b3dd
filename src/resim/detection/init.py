"""Pre-trained weights into a detector: what was loaded, what is new and what was left over, nothing in silence."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from resim.counts import counted
from resim.detection.config import DetectorConfig
from resim.detection.detector import FPN_WIDTH
from resim.detection.fpn_parts import FPN_PARTS, RESIM_FPN, fixed_among, fpn_place
from resim.errors import UserError
from resim.exchange.weights import Weights
from resim.model.encoder import ModelConfig

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True, kw_only=True)
class InitReport:
    """Where the entries of a file and of a detector went.

    Attributes:
        source: the file, and what it was recognised as; or that there is none.
        loaded: entries of the detector that were filled.
        new: its parameters and statistics that start new.
        left_over: entries of the file that the detector has no place for.
        notes: on the conversion of biases and normalisations.
    """

    source: str
    loaded: tuple[str, ...]
    new: tuple[str, ...]
    left_over: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """For a person."""
        loaded = counted(len(self.loaded), "entry", "entries")
        counts = f"{loaded} loaded, {len(self.new)} new, {len(self.left_over)} left over"
        parts = [f"weights from {self.source}: {counts}"]
        parts += [f"  {name}: {', '.join(_short(entries))}" for name, entries in self._lists() if entries]
        return parts + [f"  {note}" for note in self.notes]

    def _lists(self) -> list[tuple[str, tuple[str, ...]]]:
        return [("loaded", self.loaded), ("new", self.new), ("left over", self.left_over)]


def resolve(config: DetectorConfig, weights: Weights | None, untrained: ModelConfig | None = None) -> DetectorConfig:
    """The config with `auto` and 0 replaced by what the weights have, `frozen_fpn` among it.

    Args:
        config: of the detector.
        weights: to begin with; None: new ones.
        untrained: the network whose new weights they are, where one is named.

    Raises:
        UserError: a detector on another backbone than the untrained network that is named.
    """
    backbone, width = config.backbone, config.fpn_width
    model = weights.config if weights is not None else untrained
    if backbone == "auto":
        backbone = model.backbone if model else "resnet50"
    if untrained is not None and untrained.backbone != backbone:
        raise UserError(
            f"--init names an untrained {untrained.backbone}, the detector's backbone is {backbone}: "
            "leave --backbone out"
        )
    if not width:
        pyramid = has_fpn(weights) if weights is not None else any(x.from_fpn for x in model.levels) if model else False
        width = model.fpn_width if model and pyramid else FPN_WIDTH
    return dataclasses.replace(config, backbone=backbone, fpn_width=width, frozen_fpn=_frozen_fpn(config, weights))


def leaves_open(config: DetectorConfig) -> bool:
    """Whether the weights decide something of the detector, so that they must be read: see `resolve`."""
    open_freeze = config.freeze == "backbone+fpn" and not config.frozen_fpn
    return config.backbone == "auto" or not config.fpn_width or open_freeze


def _frozen_fpn(config: DetectorConfig, weights: Weights | None) -> tuple[str, ...]:
    """The parts of the FPN that are fixed: those that are named, else those of the weights, else ReSim's."""
    if config.freeze != "backbone+fpn" or config.frozen_fpn:
        return config.frozen_fpn
    if weights is None or not has_fpn(weights):
        return RESIM_FPN
    return fixed_among([name.removeprefix("fpn.") for name in _fpn_convolutions(weights.tensors)])


def has_fpn(weights: Weights) -> bool:
    """Whether the weights are of a network with an FPN."""
    return any(name.startswith("fpn.") for name in weights.tensors)


@torch.no_grad()
def load_init(model: GeneralizedRCNN, config: DetectorConfig, weights: Weights | None) -> InitReport:
    """Fill a detector's backbone, and its FPN where the weights have one.

    Args:
        model: from `build_detector`, before `freeze_stages`.
        config: it was built from.
        weights: as `read_weights` returns them; None: all stays new.

    Raises:
        UserError: weights of another backbone or width.
    """
    state = model.state_dict()
    tensors = {} if weights is None else weights.tensors
    source = "no file: all is new" if weights is None else f"{weights.path}, {weights.kind}"
    if weights is not None and weights.config.backbone != config.backbone:  # shapes alone would let half of it pass
        raise UserError(
            f"{source}: is of a {weights.config.backbone}, the detector's backbone is {config.backbone}: "
            "leave --backbone to the file"
        )
    filled: dict[str, Tensor] = {}
    used: set[str] = set()
    notes: list[str] = []
    for name in tensors:
        if not name.startswith("backbone."):
            continue
        rest = name.removeprefix("backbone.")
        body = f"backbone.body.{rest}"
        if config.neck == "c4" and rest.startswith("layer4."):
            body = f"roi_heads.box_head.{rest}"
        if body in state:
            filled[body] = tensors[name]
            used.add(name)
        elif name.endswith("num_batches_tracked"):
            used.add(name)  # a frozen BatchNorm counts nothing
    if config.neck == "fpn":
        for name, at in _fpn_convolutions(tensors).items():
            entries, note = _fpn_entries(tensors, name, at, state, fold=config.fold_biases)
            filled |= entries
            used |= {entry for entry in tensors if entry.startswith(f"{name}.")}
            if note and note not in notes:
                notes.append(note)
    wrong = [name for name, value in filled.items() if value.shape != state[name].shape]
    if wrong:
        name = wrong[0]
        raise UserError(
            f"{source}: {name} is {list(filled[name].shape)}, a detector on {config.backbone} with an FPN of width "
            f"{config.fpn_width} has {list(state[name].shape)}: leave --fpn-width to the file"
        )
    if tensors and not filled:
        raise UserError(f"{source}: none of its {len(tensors)} entries belongs to a backbone")
    model.load_state_dict(filled, strict=False)
    return InitReport(
        source=source,
        loaded=tuple(sorted(filled)),
        new=tuple(sorted(name for name in state if name not in filled)),
        left_over=(*sorted(set(tensors) - used), *(weights.left_over if weights else ())),
        notes=tuple(notes),
    )


def _fpn_convolutions(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Our FPN convolutions, `fpn.lateral5` and the like, and where torchvision's FPN has them."""
    places = {}
    for name in tensors:
        parts = name.split(".")
        if parts[0] == "fpn" and parts[1] in FPN_PARTS:
            places[f"fpn.{parts[1]}"] = fpn_place(parts[1])
    return places


def _fpn_entries(
    tensors: Mapping[str, Tensor], name: str, at: str, state: Mapping[str, Tensor], *, fold: bool
) -> tuple[dict[str, Tensor], str]:
    """One FPN convolution in the form that the detector has, and a note on the conversion."""
    normed, to_normed = f"{name}.0.weight" in tensors, f"{at}.1.weight" in state
    weight, bias = f"{at}.0.weight", f"{at}.0.bias"
    if normed and to_normed:
        entries = {
            f"{at}.{layer}.{leaf}": tensors[f"{name}.{layer}.{leaf}"]
            for layer, leaf in [("0", "weight"), ("1", "weight"), ("1", "bias"), *(("1", s) for s in _STATISTICS)]
            if f"{name}.{layer}.{leaf}" in tensors and f"{at}.{layer}.{leaf}" in state
        }
        return entries, ""
    if normed:
        gamma, beta, mean, variance = (
            tensors[f"{name}.1.{leaf}"] for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gamma * torch.rsqrt(variance + 1e-5)
        return (
            {weight: tensors[f"{name}.0.weight"] * scale.view(-1, 1, 1, 1), bias: beta - mean * scale},
            "FPN: BatchNorm of the pre-training folded into weights and biases (features in evaluation are equal)",
        )
    if not to_normed:
        return {weight: tensors[f"{name}.weight"], bias: tensors[f"{name}.bias"]}, ""
    if not fold:
        return {weight: tensors[f"{name}.weight"]}, "FPN: biases of the plain convolutions dropped, as published"
    # (x - 0) / sqrt(1 - eps + eps) * 1 + bias
    entries = {
        weight: tensors[f"{name}.weight"],
        f"{at}.1.weight": torch.ones_like(state[f"{at}.1.weight"]),
        f"{at}.1.bias": tensors[f"{name}.bias"],
        f"{at}.1.running_mean": torch.zeros_like(state[f"{at}.1.running_mean"]),
        f"{at}.1.running_var": torch.full_like(state[f"{at}.1.running_var"], 1 - 1e-5),
    }
    return entries, "FPN: biases folded into BatchNorm's beta (features in evaluation are equal)"


def _short(entries: tuple[str, ...]) -> list[str]:
    """Entries by the module that they belong to, with counts: layer4 (60)."""
    counts: dict[str, int] = {}
    for entry in entries:
        parts = entry.split(".")
        deep = 4 if "fpn" in parts[:2] and parts[0] == "backbone" else 3 if len(parts) > 3 else len(parts) - 1
        key = ".".join(parts[: max(1, min(deep, len(parts) - 1))])
        counts[key] = counts.get(key, 0) + 1
    return [f"{key} ({count})" for key, count in counts.items()]
