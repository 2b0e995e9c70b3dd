"""The published linear probe: a classifier on the frozen backbone, trained by SGD on augmented images.

Shapes: N images, C channels of C5, K classes, views of S x S px.

Source: He et al., arXiv 1911.05722, section 4.1; the schedule of MoCo's README.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from resim.errors import UserError
from resim.probes.config import LinearConfig
from resim.probes.features import Network, read_views, to_images
from resim.probes.labels import ProbeImages
from resim.views.crops import ViewsConfig, cut_views, draw_views, sample_generator
from resim.views.decode import Photo
from resim.views.loader import BadFile


@dataclass(frozen=True, kw_only=True)
class LinearHead:
    """A trained linear classifier."""

    weight: Tensor
    """(K, C) float32."""
    bias: Tensor
    """(K,) float32."""
    losses: tuple[float, ...]
    """Mean cross-entropy of each epoch, on the augmented images."""
    bad: tuple[BadFile, ...]
    """Images that cannot be decoded."""

    def scores(self, features: Tensor) -> Tensor:
        """Class scores (M, K) of features (M, C)."""
        return features.to(self.weight) @ self.weight.T + self.bias


def learning_rate(config: LinearConfig, epoch: int) -> float:
    """The learning rate of an epoch, counted from 0: divided by 10 at each of the steps."""
    return config.lr * 0.1 ** sum(epoch >= step for step in config.steps)


def train_linear(
    network: Network,
    images: ProbeImages,
    config: LinearConfig,
    *,
    size: int,
    progress: Callable[[int], None] | None = None,
) -> LinearHead:
    """Train a linear classifier on the mean of C5 over random crops, with a frozen backbone in evaluation mode.

    Views are random resized crops (area as configured, aspect ratio 3/4 to 4/3), flipped with probability 0.5. Weights
    are initialised from a normal distribution of standard deviation 0.01, biases with 0.

    Args:
        network: in evaluation mode; it is not changed.
        images: with classes.
        config: the schedule.
        size: S, px.
        progress: called after every step with the number of its images.

    Raises:
        UserError: no image can be decoded.
        ValueError: the images have no classes.
    """
    if images.labels is None:
        raise ValueError("a linear probe needs images with classes")
    labels = torch.from_numpy(images.labels)
    views = ViewsConfig(image_size=size, crop_area=config.crop_area, flip="independent")
    generator = torch.Generator().manual_seed(config.seed)
    width = network.encoder.backbone.channels["C5"]
    weight = torch.empty(len(images.classes), width).normal_(0, 0.01, generator=generator)
    weight = weight.to(network.device).requires_grad_()
    bias = torch.zeros(len(images.classes), device=network.device, requires_grad=True)
    solver = torch.optim.SGD([weight, bias], lr=config.lr, momentum=config.momentum, weight_decay=0.0)
    losses: list[float] = []
    bad: list[BadFile] = []
    for epoch in range(config.epochs):
        for group in solver.param_groups:
            group["lr"] = learning_rate(config, epoch)
        order = np.random.default_rng([9, config.seed, epoch]).permutation(len(images))
        sums = torch.zeros(2, dtype=torch.float64)
        epoch_bad: list[BadFile] = []

        def cut(photo: Photo, index: int, epoch: int = epoch) -> np.ndarray:
            # only the crop of the query view is used, without a change of colours
            _, draws = draw_views(views, photo.width, photo.height, sample_generator(config.seed, epoch, index))
            return cut_views(photo, False, draws[:1], size)

        for indices, pixels in read_views(images, order.tolist(), cut, epoch_bad, batch=config.batch_size):
            vectors = _c5(network, pixels[:, 0])
            loss = F.cross_entropy(F.linear(vectors, weight, bias), labels[indices].to(vectors.device))
            solver.zero_grad()
            loss.backward()
            solver.step()
            sums += torch.tensor([loss.item() * len(indices), len(indices)], dtype=torch.float64)
            if progress is not None:
                progress(len(indices))
        if not sums[1]:
            raise UserError(f"{images.source}: no image can be decoded ({epoch_bad[0].path}: {epoch_bad[0].reason})")
        losses.append(float(sums[0] / sums[1]))
        bad = epoch_bad
    return LinearHead(weight=weight.detach(), bias=bias.detach(), losses=tuple(losses), bad=tuple(bad))


@torch.no_grad()
def _c5(network: Network, pixels: Tensor, at_once: int = 64) -> Tensor:
    """The mean of C5 over each view: (N, S, S, 3) uint8 -> (N, C)."""
    return torch.cat([network.c5(to_images(part)) for part in pixels.split(at_once)])
