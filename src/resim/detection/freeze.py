"""A frozen detector: its backbone, and what is pre-trained of its FPN, computed without gradient and never changed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.ops.misc import Conv2dNormActivation

from resim.detection.config import DetectorConfig
from resim.detection.detector import freeze_stages
from resim.detection.fpn_parts import FPN_PARTS, fpn_place
from resim.detection.init import InitReport
from resim.detection.norms import freeze

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_PARTS = {
    "backbone.body.conv1.": "stem", "backbone.body.bn1.": "stem", "roi_heads.box_head.layer4.": "res5",
    "roi_heads.box_head.norm.": "BatchNorm after res5",
}  # fmt: skip


class _FrozenBody(IntermediateLayerGetter):
    """A ResNet's stages without gradient."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        return super().forward(x)


class _FrozenConv(Conv2dNormActivation):
    """A convolution of an FPN with its normalisation, without gradient."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


def freeze_parts(model: GeneralizedRCNN, config: DetectorConfig) -> None:
    """Fix what the config says, after weights have been loaded: by `frozen_stages`, and by `freeze`.

    What `freeze` names is computed under `torch.no_grad`, its BatchNorms with the running statistics that they have.
    The fifth stage of a C4 detector is its box head and is trained, unless `frozen_stages` is 5.

    Args:
        model: from `build_detector`; parts of it are replaced.
        config: with `frozen_fpn` resolved.
    """
    if config.freeze == "none":
        freeze_stages(model, config.frozen_stages)
        return
    if config.freeze == "backbone+fpn" and not config.frozen_fpn:
        raise ValueError("frozen-fpn is open: resolve the config first")
    freeze_stages(model, max(config.frozen_stages, 4 if config.neck == "c4" else 5))
    backbone: Any = model.backbone
    backbone.body.__class__ = _FrozenBody
    for part in config.frozen_fpn:
        block: Any = model.get_submodule(fpn_place(part))
        freeze(block)
        block.__class__ = _FrozenConv


def freeze_words(config: DetectorConfig) -> str:
    """What `freeze` fixes, in a few words; empty: nothing."""
    if config.freeze == "none":
        return ""
    fpn = f" and FPN ({', '.join(config.frozen_fpn)})" if config.freeze == "backbone+fpn" else ""
    return f"backbone{fpn}"


def freeze_lines(model: nn.Module, config: DetectorConfig, report: InitReport | None) -> list[str]:
    """Which parts of a detector are frozen, which are trained and which of each are new; empty where all is trained.

    Args:
        model: after `freeze_parts`.
        config: of the detector.
        report: of the weights; None where the run is resumed.
    """
    if config.freeze == "none":
        return []
    trained_names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    sizes = {name: v.numel() for name, v in model.state_dict().items() if not name.endswith(_STATISTICS)}
    trained = {part: 0 for part in map(_part, sizes) if part in set(map(_part, trained_names))}
    frozen = {part: 0 for part in map(_part, sizes) if part not in trained}
    for name, size in sizes.items():
        (trained if _part(name) in trained else frozen)[_part(name)] += size
    lines = [
        f"frozen by --freeze {config.freeze}, computed without gradient: {_listed(frozen)} ({_millions(frozen)})",
        f"trained: {_listed(trained)} ({_millions(trained)})",
    ]
    if report is None:
        return lines
    loaded = set(map(_part, report.loaded))
    new = [part for part in trained if part not in loaded]
    lines[1] += f"; new of these: {_listed(new)}" if len(new) < len(trained) else ", all of it new"
    never = [part for part in frozen if part not in loaded]
    if never and not report.loaded:
        lines.append("what is frozen was never trained: this is the baseline of an untrained network")
    elif never:
        lines.append(
            f"warning: {report.source} has no {_listed(never)}, frozen as initialised: --freeze backbone trains it, "
            "and is the fair comparison with other weights"
        )
    return lines


def _part(name: str) -> str:
    """The part of a detector that an entry of its state belongs to."""
    for prefix, part in _PARTS.items():
        if name.startswith(prefix):
            return part
    words = name.split(".")
    if words[:2] == ["backbone", "body"]:
        return words[2]
    if words[:2] == ["backbone", "fpn"]:
        return next(f"FPN {part}" for part in FPN_PARTS if name.startswith(f"{fpn_place(part)}."))
    return "RPN" if words[0] == "rpn" else words[1].replace("_", " ")


def _listed(parts: Iterable[str]) -> str:
    """Parts in words, those of the FPN together: layer4, FPN (lateral5, output4), RPN."""
    words = list(parts)
    pyramid = [part.removeprefix("FPN ") for part in words if part.startswith("FPN ")]
    together = f"FPN ({', '.join(pyramid)})"
    return ", ".join(dict.fromkeys(together if part.startswith("FPN ") else part for part in words))


def _millions(parts: dict[str, int]) -> str:
    return f"{sum(parts.values()) / 1e6:.2f} M parameters"
