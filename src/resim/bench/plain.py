"""A plain loader, to compare ours with: views are made image by image in the loader processes, by torchvision.

The plain step is `resim.model.reference`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from resim.views.crops import ViewsConfig
from resim.views.photometric import MEAN, STD
from resim.views.shards import open_image


class PlainViews(Dataset[tuple[Tensor, Tensor, Tensor, Tensor]]):
    """Two finished views of an image and their crops: (3, S, S) float32 and (4,) each."""

    def __init__(self, paths: Sequence[str], config: ViewsConfig) -> None:
        self.paths, self.config = paths, config
        jitter = v2.ColorJitter(config.brightness, config.contrast, config.saturation, config.hue)
        self.colours = v2.Compose(
            [
                v2.RandomApply([v2.GaussianBlur(17, config.blur_sigma)], p=config.blur_probability),
                v2.RandomApply([jitter], p=config.jitter_probability),
                v2.RandomGrayscale(config.gray_probability),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        with open_image(self.paths[index]) as file, Image.open(file) as opened:
            image = opened.convert("RGB")
        if self.config.flip == "shared" and torch.rand(()) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        size, views = (self.config.image_size, self.config.image_size), []
        for _ in range(2):
            crop = v2.RandomResizedCrop.get_params  # type: ignore[attr-defined]
            box = crop(image, list(self.config.crop_area), list(self.config.crop_aspect))
            top, left, height, width = box
            view = image.crop((left, top, left + width, top + height)).resize(size, Image.Resampling.BILINEAR)
            views += [self.colours(view), torch.tensor(box).double()]
        return views[0], views[1], views[2], views[3]


def plain_loader(
    paths: Sequence[str], config: ViewsConfig, batch: int, workers: int, *, pin_memory: bool = False
) -> DataLoader:
    """Batches of `PlainViews` in a random order, incomplete ones dropped."""
    return DataLoader(
        PlainViews(paths, config), batch, shuffle=True, num_workers=workers, drop_last=True, pin_memory=pin_memory
    )
