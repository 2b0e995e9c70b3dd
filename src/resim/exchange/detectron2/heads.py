"""The box head of the published C4 protocols: the fifth stage and one more normalisation after it.

Importing this registers it with Detectron2 as `Res5ROIHeadsExtraNorm`.
Source: He et al., arXiv 1911.05722, appendix A.1.
"""

from __future__ import annotations

from typing import Any

from detectron2.layers import get_norm  # pyright: ignore[reportMissingImports]
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads  # pyright: ignore[reportMissingImports]


class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """Detectron2's `Res5ROIHeads` with a norm, of the kind of the ResNet's, as the last module of `res5`."""

    @classmethod
    def _build_res5_block(cls, cfg: Any) -> Any:
        stage, channels = super()._build_res5_block(cfg)
        stage.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, channels))
        return stage, channels


if "Res5ROIHeadsExtraNorm" not in ROI_HEADS_REGISTRY:  # another program may have registered its own
    ROI_HEADS_REGISTRY.register(Res5ROIHeadsExtraNorm)
