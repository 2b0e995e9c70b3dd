"""Replaced parts of torchvision's detectors: sampling with a seed for each image, and smooth L1 with any beta."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.transform import GeneralizedRCNNTransform

TORCHVISION_BETA = 1 / 9
"""Of the smooth L1 in torchvision's RPN and box head."""


class SeededSampler(BalancedPositiveNegativeSampler):
    """Torchvision's sampler of positive and negative regions, seeded for each image of the batch."""

    def __init__(self, regions: int, positive_fraction: float, stream: int) -> None:
        super().__init__(regions, positive_fraction)
        self.stream = stream
        self.seeds: Sequence[int] = ()

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """As torchvision's; where no seeds are set, from the global generator as there."""
        if not self.seeds:
            return super().__call__(matched_idxs)
        positives, negatives = [], []
        device = matched_idxs[0].device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            for one, seed in zip(matched_idxs, self.seeds, strict=True):
                torch.manual_seed((seed + self.stream) % 2**63)
                positive, negative = super().__call__([one])
                positives += positive
                negatives += negative
        return positives, negatives


class ChosenSizes(GeneralizedRCNNTransform):
    """Torchvision's resizing and normalisation; in training to the shorter side that was chosen for each image."""

    sizes: Sequence[int] = ()

    def torch_choice(self, k: list[int]) -> int:
        """The next image's shorter side, px; where none was chosen, one of them from the global generator."""
        if not self.sizes:
            return super().torch_choice(k)
        size, self.sizes = self.sizes[0], self.sizes[1:]
        return size

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """As torchvision's; an image so narrow that its shorter side would be 0 px is resized to 1 px instead."""
        height, width = image.shape[-2:]
        if min(height, width) * self.max_size >= max(height, width):
            return super().resize(image, target)
        self.fixed_size = (self.max_size, 1) if width > height else (1, self.max_size)  # width, height
        try:
            return super().resize(image, target)
        finally:
            self.fixed_size = None


class BetaRPN(RegionProposalNetwork):
    """Torchvision's RPN with another beta in its smooth L1, which is the same loss of scaled differences."""

    beta = TORCHVISION_BETA

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """As torchvision's: smooth_l1(x, beta) = smooth_l1(s x, s beta) / s."""
        scale = TORCHVISION_BETA / self.beta
        objectness_loss, box_loss = super().compute_loss(
            objectness, pred_bbox_deltas * scale, labels, [target * scale for target in regression_targets]
        )
        return objectness_loss, box_loss / scale


class BetaRoIHeads(RoIHeads):
    """Torchvision's heads with another beta in the box head's smooth L1: as `BetaRPN`, of scaled differences.

    The box predictor's regression is scaled by a hook, which `set_betas` puts there.
    """

    beta = TORCHVISION_BETA

    @property
    def scale(self) -> float:
        """Of the differences, in training."""
        return TORCHVISION_BETA / self.beta

    def select_training_samples(self, proposals: list[Tensor], targets: Any) -> Any:
        """As torchvision's, with scaled regression targets."""
        *rest, regression_targets = super().select_training_samples(proposals, targets)
        return (*rest, [target * self.scale for target in regression_targets])

    def forward(self, features: Any, proposals: Any, image_shapes: Any, targets: Any = None) -> Any:
        """As torchvision's, with the loss of boxes divided by the scale."""
        result, losses = super().forward(features, proposals, image_shapes, targets)
        if "loss_box_reg" in losses:
            losses["loss_box_reg"] = losses["loss_box_reg"] / self.scale
        return result, losses


def set_betas(model: GeneralizedRCNN, *, rpn: float, box: float) -> None:
    """Set the beta of the RPN's and of the box head's smooth L1; torchvision's own beta keeps torchvision's code."""
    parts: Any = model
    if rpn != TORCHVISION_BETA:
        parts.rpn.__class__, parts.rpn.beta = BetaRPN, rpn
    if box != TORCHVISION_BETA:
        heads = parts.roi_heads
        heads.__class__, heads.beta = BetaRoIHeads, box
        heads.box_predictor.register_forward_hook(
            lambda module, _inputs, output: (output[0], output[1] * (TORCHVISION_BETA / box if module.training else 1))
        )


def set_sizes_and_seeds(model: nn.Module, sizes: Sequence[int], seeds: Sequence[int]) -> None:
    """Set each image's shorter side in px and the seed of its sampled regions, for the next pass in training."""
    for module in model.modules():
        if isinstance(module, ChosenSizes):
            module.sizes = sizes
        sampler = getattr(module, "fg_bg_sampler", None)
        if isinstance(sampler, SeededSampler):
            sampler.seeds = seeds
