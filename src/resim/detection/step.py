"""One optimisation step of a detector: as many passes as the memory requires, gradients averaged over processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from resim.counts import counted
from resim.detection.config import TuneConfig
from resim.detection.samples import DetectionBatch
from resim.detection.torchvision_patches import set_sizes_and_seeds
from resim.distributed.processes import Processes, averaging, in_parallel
from resim.errors import UserError
from resim.training.optimizer import nan_unless_finite

# torchvision's names, and ours in metrics
LOSSES = {
    "loss_classifier": "classes", "loss_box_reg": "boxes", "loss_mask": "masks", "loss_keypoint": "keypoints",
    "loss_objectness": "rpn_objectness", "loss_rpn_box_reg": "rpn_boxes",
}  # fmt: skip


@dataclass(frozen=True)
class DetectorStepper:
    """A detector and all else that a step needs."""

    model: GeneralizedRCNN
    optimizer: torch.optim.Optimizer
    called: nn.Module
    """The detector as it is called: wrapped in DistributedDataParallel, or itself."""
    processes: Processes
    images_per_pass: int
    """0: all at once."""
    precision: Literal["float32", "bf16"]
    clip_norm: float = 0.0

    def __call__(self, batch: DetectionBatch) -> dict[str, Tensor]:
        """Forward and backward over this process's images, one step of the optimiser.

        Torchvision's losses are means over the images and regions of a pass; passes are averaged by their images.

        Returns:
            The losses and their sum, `total`, detached; the total is NaN if the weights are not finite after the step.

        Raises:
            UserError: the GPU's memory is full.
        """
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        parts = self._passes(batch)
        try:
            for at, part in enumerate(parts):
                with averaging(self.called, last=at == len(parts) - 1):
                    losses = self.losses(part)
                    total = torch.stack(list(losses.values())).sum()
                    share = len(part) / len(batch)
                    (total * share).backward()
                for name, value in (losses | {"total": total}).items():
                    sums[name] = sums.get(name, 0) + value.detach() * share
        except torch.OutOfMemoryError:
            size = len(parts[0])
            remedy = f"set --images-per-pass {size // 2}" if size > 1 else "set smaller --min-sizes and --max-size"
            raise UserError(f"the GPU's memory is full with {counted(size, 'image')} a pass: {remedy}") from None
        if self.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        sums["total"] = sums["total"] + nan_unless_finite(self.model)
        return sums

    def forward(self, batch: DetectionBatch) -> None:
        """Run this process's images through the detector in its present mode, for BatchNorm's statistics alone."""
        for part in self._passes(batch):
            self.losses(part)

    def losses(self, batch: DetectionBatch) -> dict[str, Tensor]:
        """Torchvision's losses of one pass, under our names."""
        images, targets = batch.to(self.processes.device)
        set_sizes_and_seeds(self.model, [s.size for s in batch.samples], [s.seed for s in batch.samples])
        with torch.autocast(self.processes.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            losses = self.called(images, targets)
        return {LOSSES[name]: value.float() for name, value in losses.items()}

    def _passes(self, batch: DetectionBatch) -> Sequence[DetectionBatch]:
        size = self.images_per_pass or len(batch)
        return [DetectionBatch(batch.samples[start : start + size]) for start in range(0, len(batch), size)]


def make_detector_stepper(
    model: GeneralizedRCNN,
    tune: TuneConfig,
    processes: Processes,
    *,
    precision: Literal["float32", "bf16"],
    images_per_pass: int = 0,
) -> DetectorStepper:
    """Put a detector on this process's device, with its optimiser; the learning rate is set before each step."""
    placed: Any = model.to(processes.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    norms = {id(p) for module in placed.modules() if isinstance(module, _NormBase) for p in module.parameters()}
    trained = [parameter for parameter in placed.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in norms], "weight_decay": tune.weight_decay},
        {"params": [p for p in trained if id(p) in norms], "weight_decay": tune.norm_weight_decay},
    ]
    optimizer = _make_optimizer([group for group in groups if group["params"]], tune)
    called = in_parallel(placed, processes)
    return DetectorStepper(placed, optimizer, called, processes, images_per_pass, precision, tune.clip_norm)


def _make_optimizer(groups: list[dict[str, Any]], tune: TuneConfig) -> torch.optim.Optimizer:
    if tune.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=tune.lr, betas=tune.betas, fused=True)
    return torch.optim.SGD(groups, lr=tune.lr, momentum=tune.momentum, fused=True)
