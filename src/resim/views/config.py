"""The configuration of views. Imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from resim.fields import check_fields


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """How two views of an image are generated.

    Source: Xiao et al., ICCV 2021, section 4.1; Chen et al., arXiv 2003.04297 (MoCo v2's augmentation).
    """

    image_size: int = 224
    """Side of a view, px."""
    crop_area: tuple[float, float] = (0.2, 1.0)
    """Least and largest share of the image's area in a crop."""
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and largest width / height of a crop."""
    flip: Literal["shared", "independent", "none"] = "shared"
    """Horizontal flip (probability 0.5): one for both views before cropping, one for each view after it, or none."""
    photometric_order: Literal["blur-jitter-gray", "jitter-gray-blur"] = "blur-jitter-gray"
    """Order of the colour operations: ReSim blurs first, MoCo v2 last."""
    blur_probability: float = 0.5
    """Share of views that are blurred."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Least and largest standard deviation of the blur, px of the view."""
    jitter_probability: float = 0.8
    """Share of views whose colours are jittered."""
    brightness: float = 0.4
    """Brightness factor is drawn from 1 - this to 1 + this."""
    contrast: float = 0.4
    """Contrast factor is drawn from 1 - this to 1 + this."""
    saturation: float = 0.4
    """Saturation factor is drawn from 1 - this to 1 + this."""
    hue: float = 0.1
    """Hue shift is drawn from -this to +this, turns."""
    gray_probability: float = 0.2
    """Share of views that are converted to gray."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.image_size < 32:
            raise ValueError(f"image-size {self.image_size}: must be at least 32 px, the stride of the top feature map")
        if self.image_size > 8192:
            raise ValueError(f"image-size {self.image_size}: must be at most 8192 px")
        for name in ("crop_area", "crop_aspect", "blur_sigma"):
            least, largest = getattr(self, name)
            if not 0 < least <= largest:
                raise ValueError(
                    f"{name.replace('_', '-')} {least} {largest}: two numbers above 0, the smaller one first"
                )
        if self.crop_area[1] > 1:
            raise ValueError(f"crop-area {self.crop_area[0]} {self.crop_area[1]}: shares of the image are at most 1")
        for name in (
            "blur_probability",
            "jitter_probability",
            "gray_probability",
            "brightness",
            "contrast",
            "saturation",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name.replace('_', '-')} {getattr(self, name)}: must be in [0, 1]")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue {self.hue}: must be in [0, 0.5] turns")
