"""The training step and the views written plainly, as this field's programs are: what our own are measured against.

float32, whole logits, loops over groups and parameters; views made image by image in the loader processes with Pillow
and torchvision. Same network, same windows, same losses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from resim.model.encoder import Encoder, ModelConfig
from resim.model.grouped_norm import commit_statistics
from resim.regions.cells import key_cells
from resim.regions.pooling import precise_roi_pool
from resim.regions.windows import inside_view, map_windows
from resim.views.crops import ViewsConfig
from resim.views.photometric import MEAN, STD
from resim.views.shards import open_bytes
from resim.views.views import Views


class PlainReSim(nn.Module):
    """MoCo v2 and the region losses, group by group."""

    queue: Tensor

    def __init__(self, config: ModelConfig, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.config = config
        self.query, self.key = Encoder(config), Encoder(config)
        self.register_buffer("queue", F.normalize(torch.randn(config.queue_size, config.dim), dim=1))
        self.key.load_state_dict(self.query.state_dict())
        self.key.requires_grad_(False)
        self.position = 0

    def forward(self, views_q: Views, views_k: Views) -> dict[str, Tensor]:
        """The losses of `ReSim.forward`, unshuffled."""
        size, device = self.config.group_size, views_q.images.device
        parts = [slice(start, start + size) for start in range(0, len(views_q), size)]
        with torch.no_grad():
            for key, query in zip(self.key.parameters(), self.query.parameters(), strict=True):
                key.data = key.data * self.config.key_momentum + query.data * (1 - self.config.key_momentum)
            encoded = [self.key(views_k.images[part]) for part in parts]
            keys = [F.normalize(vectors, dim=1) for vectors, _ in encoded]
            cells = [{n: key_cells(maps[n]).flatten(0, 1) for n in maps} for _, maps in encoded]
        groups = []
        for group, part in enumerate(parts):
            queries, maps = self.query(views_q.images[part])
            queries = F.normalize(queries, dim=1)
            losses = {"instance": self._loss(queries, keys[group], self.queue.clone())}
            for level in self.config.levels:
                windows = level.windows(views_q.size)
                mapped = map_windows(windows, views_q.crops[part], views_k.crops[part], views_q.size)
                valid = inside_view(mapped, views_q.size).flatten().to(device)
                mapped, windows = mapped.to(device), windows.to(device)
                regions = F.normalize(precise_roi_pool(maps[level.name], windows, level.stride), dim=-1).flatten(0, 1)
                with torch.no_grad():
                    boxes = mapped * valid.view(len(mapped), -1, 1)
                    of_key = precise_roi_pool(encoded[group][1][level.name], boxes, level.stride)
                    positives = F.normalize(of_key, dim=-1).flatten(0, 1)
                    seen = cells if level.negatives == "all" else cells[group : group + 1]
                    negatives = torch.cat([each[level.name] for each in seen])
                losses[level.name] = self._loss(regions[valid], positives[valid], negatives)
            groups.append(losses)
        losses = {name: torch.stack([each[name] for each in groups]).mean() for name in groups[0]}
        losses["total"] = torch.stack(list(losses.values())).sum()
        for key in keys:
            end = self.position + len(key)
            self.queue[self.position : end] = key
            self.position = end % self.config.queue_size
        commit_statistics(self)
        return losses

    def _loss(self, queries: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        logits = torch.cat([(queries * positives).sum(1, keepdim=True), queries @ negatives.T], dim=1)
        target = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        return F.cross_entropy(logits / self.config.temperature, target)


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
        with Image.open(open_bytes(self.paths[index])) as opened:
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
