"""The configuration of views. Imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from resim.fields import AtLeast, AtMost, Positive, PositiveShare, Share, check_fields


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """How two views of an image are generated.

    Source: Xiao et al., ICCV 2021, section 4.1; Chen et al., arXiv 2003.04297 (MoCo v2's augmentation).
    """

    image_size: Annotated[int, AtLeast(32, "px"), AtMost(8192, "px")] = 224
    """Side of a view, px."""
    crop_area: tuple[PositiveShare, PositiveShare] = (0.2, 1.0)
    """Least and largest share of the image's area in a crop."""
    crop_aspect: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    """Least and largest width / height of a crop."""
    flip: Literal["shared", "independent", "none"] = "shared"
    """Horizontal flip (probability 0.5): one for both views before cropping, one for each view after it, or none."""
    photometric_order: Literal["blur-jitter-gray", "jitter-gray-blur"] = "blur-jitter-gray"
    """Order of the colour operations: ReSim blurs first, MoCo v2 last."""
    blur_probability: Share = 0.5
    """Share of views that are blurred."""
    blur_sigma: tuple[Positive, Positive] = (0.1, 2.0)
    """Least and largest standard deviation of the blur, px of the view."""
    jitter_probability: Share = 0.8
    """Share of views whose colours are jittered."""
    brightness: Share = 0.4
    """Brightness factor is drawn from 1 - this to 1 + this."""
    contrast: Share = 0.4
    """Contrast factor is drawn from 1 - this to 1 + this."""
    saturation: Share = 0.4
    """Saturation factor is drawn from 1 - this to 1 + this."""
    hue: Annotated[float, AtLeast(0), AtMost(0.5, "turns")] = 0.1
    """Hue shift is drawn from -this to +this, turns."""
    gray_probability: Share = 0.2
    """Share of views that are converted to gray."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("crop_area", "crop_aspect", "blur_sigma"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name.replace('_', '-')} {low} {high}: the smaller number must be the first")
