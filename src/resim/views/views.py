"""A batch of views with their crops in the source images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Views:
    """One view of each of N images.

    Raises:
        ValueError: the shapes do not match, or the views are not square.
    """

    images: Tensor
    """(N, 3, S, S), normalised."""
    crops: Tensor
    """(N, 4): top, left, height, width in pixels of the source image; with a shared flip, of the mirrored image."""
    flipped: Tensor | None = None
    """(N,) bool: whether this view alone was mirrored, after cropping; None: no view was."""

    def __post_init__(self) -> None:
        if self.images.dim() != 4 or self.images.shape[-1] != self.images.shape[-2]:
            raise ValueError(f"views must be square, (N, 3, S, S), not {tuple(self.images.shape)}")
        if self.crops.shape != (len(self.images), 4):
            raise ValueError(f"crops of {len(self.images)} views must be (N, 4), not {tuple(self.crops.shape)}")
        if self.flipped is not None and self.flipped.shape != (len(self.images),):
            raise ValueError(f"flipped must be ({len(self.images)},), not {tuple(self.flipped.shape)}")

    @property
    def size(self) -> int:
        """S, the side of a view in px."""
        return self.images.shape[-1]

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Views:
        """The same views with their images on `device`; the crops are not copied."""
        return Views(self.images.to(device, dtype), self.crops, self.flipped)
