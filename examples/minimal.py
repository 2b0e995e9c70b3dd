"""ReSim in one file: the data, the method and the loop, for reading and for changing.

    python examples/minimal.py DIR            # a folder of images; ResNet-18 at 128 px, a loss a step

One process, one level (P4), nothing saved. `resim pretrain` does the same with groups, several levels, resuming,
exports and speed. Method: Xiao et al., ICCV 2021 (arXiv 2103.12902), with MoCo v2 (arXiv 2003.04297).
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.transforms import v2

import resim

SIZE = 128  # px of a view
WINDOW, STEP, STRIDE = 48, 16, 16  # px of a window, between windows, of a cell of P4
TEMPERATURE, MOMENTUM, QUEUE, DIM = 0.2, 0.99, 1024, 128


class ViewPairs(Dataset):
    """Two views of an image, (3, SIZE, SIZE) each, and where they were cut: (top, left, height, width)."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".png", ".webp"))
        self.crop = v2.RandomResizedCrop(SIZE, (0.2, 1.0))
        self.colours = v2.Compose([
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(9, (0.1, 1.0))], p=0.5),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        image = Image.open(self.paths[index]).convert("RGB")
        if torch.rand(()) < 0.5:  # one flip for both views, before they are cut
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        views, crops = [], []
        for _ in range(2):
            crop = self.crop.make_params([image])
            top, left, height, width = (crop[name] for name in ("top", "left", "height", "width"))
            views.append(self.colours(image.resize((SIZE, SIZE), box=(left, top, left + width, top + height))))
            crops.append(torch.tensor([top, left, height, width], dtype=torch.float64))
        return views[0], crops[0], views[1], crops[1]


class Encoder(nn.Module):
    """A ResNet-18 with a global head, and P4 of a feature pyramid."""

    def __init__(self) -> None:
        super().__init__()
        self.body = create_feature_extractor(models.resnet18(), {"layer3": "c4", "layer4": "c5"})
        self.head = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, DIM))
        self.lateral4, self.lateral5 = nn.Conv2d(256, 128, 1), nn.Conv2d(512, 128, 1)
        self.output4 = nn.Conv2d(128, 128, 3, padding=1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.body(images)
        vectors = self.head(maps["c5"].mean(dim=(2, 3)))
        p4 = self.lateral4(maps["c4"]) + F.interpolate(self.lateral5(maps["c5"]), scale_factor=2)
        return F.normalize(vectors, dim=1), self.output4(p4)


def info_nce(queries: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """Queries (n, C) must find their positives (n, C) among the negatives (M, C); all have unit length."""
    logits = torch.cat([(queries * positives).sum(dim=1, keepdim=True), queries @ negatives.T], dim=1)
    return F.cross_entropy(logits / TEMPERATURE, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def region_loss(map_q: Tensor, map_k: Tensor, crops_q: Tensor, crops_k: Tensor) -> Tensor:
    """Each window of the query view against the same region of the key view, among all cells of the key maps."""
    windows = resim.window_grid(SIZE, WINDOW, STEP)  # (R, 4)
    windows_k = resim.map_windows(windows, crops_q, crops_k, SIZE)  # (N, R, 4): where they lie in the key views
    shared = resim.inside_view(windows_k, SIZE)  # (N, R): both views show it
    regions = F.normalize(resim.precise_roi_pool(map_q, windows.to(map_q.device), STRIDE), dim=-1)
    positives = F.normalize(resim.precise_roi_pool(map_k, windows_k.to(map_k.device), STRIDE), dim=-1)
    cells = F.normalize(F.avg_pool2d(map_k, 3, stride=1).flatten(2).transpose(1, 2).flatten(0, 1), dim=1)
    shared = shared.to(map_q.device)
    return info_nce(regions[shared], positives[shared], cells) if shared.any() else map_q.sum() * 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loader = DataLoader(ViewPairs(options.folder), options.batch, shuffle=True, drop_last=True, num_workers=2)
    query = Encoder().to(device)
    key = copy.deepcopy(query).requires_grad_(False)
    queue = F.normalize(torch.randn(QUEUE, DIM, device=device), dim=1)
    optimizer = torch.optim.AdamW(query.parameters(), lr=1e-3, weight_decay=0.05, betas=(0.9, 0.95))
    for epoch in range(options.epochs):
        for views_q, crops_q, views_k, crops_k in loader:
            views_q, views_k = views_q.to(device), views_k.to(device)
            with torch.no_grad():
                for slow, fast in zip(key.parameters(), query.parameters(), strict=True):
                    slow.lerp_(fast, 1 - MOMENTUM)
                order = torch.randperm(len(views_k), device=device)  # BatchNorm must not identify the key of a query
                back = torch.argsort(order)
                keys, maps_k = (x[back] for x in key(views_k[order]))
            vectors, maps_q = query(views_q)
            losses = {"image": info_nce(vectors, keys, queue), "P4": region_loss(maps_q, maps_k, crops_q, crops_k)}
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
            queue = torch.cat([keys, queue])[:QUEUE]
            print(f"epoch {epoch + 1}", *(f"{name} {loss.item():.3f}" for name, loss in losses.items()), flush=True)


if __name__ == "__main__":
    main()
