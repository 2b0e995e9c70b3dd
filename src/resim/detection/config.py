"""The settings of a fine-tuning: the detector, its images, its optimisation, and how it is run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from resim.detection.fpn_parts import check_fixed
from resim.fields import AtLeast, AtMost, Below, Decay, Positive, PositiveShare, Seed, Share, check_fields
from resim.model.config import WIDEST
from resim.runs.config import Resume, normalize_resume

LONGEST = 2**15
"""The longest side of images and anchors, px: images are enlarged to the size that a file of weights states."""


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """Faster, Mask or Keypoint R-CNN on a ResNet with an FPN, or Faster or Mask R-CNN on a ResNet's C4.

    Source: torchvision's detectors, whose defaults these are; Xiao et al., ICCV 2021, section 5; He et al.,
    arXiv 1911.05722, appendix, for C4 with one extra BatchNorm.
    """

    backbone: str = "auto"
    """torchvision ResNet or ResNeXt by name; auto: that of --init."""
    neck: Literal["fpn", "c4"] = "fpn"
    """fpn: boxes are detected on P2 to P5; c4: on C4, by the fifth stage, with an extra BatchNorm after it."""
    fpn_width: Annotated[int, AtLeast(0), AtMost(WIDEST)] = 0
    """Channels of every FPN map; 0: that of --init, or 256."""
    norm: Literal["sync", "batch", "frozen"] = "sync"
    """BatchNorm of the backbone: over all processes, of each, or with fixed statistics and weights."""
    fpn_norm: bool = True
    """The same normalisation after each FPN convolution, which then has no bias."""
    frozen_stages: Annotated[int, AtLeast(0), AtMost(5)] = 0
    """Stages that are not trained: 0: none, 1: the stem, 2: the stem and the first stage (Detectron2's FREEZE_AT)."""
    freeze: Literal["none", "backbone", "backbone+fpn"] = "none"
    """backbone: it is computed without gradient and never changes (on C4: up to the fourth stage); backbone+fpn: nor do
    the pre-trained parts of the FPN."""
    frozen_fpn: tuple[str, ...] = ()
    """Parts of the FPN that --freeze backbone+fpn fixes, such as lateral4; none named: those that --init has, or else
    those that ReSim pre-trains on P3 and P4."""
    fold_biases: bool = True
    """Biases of a plain pre-trained FPN go into BatchNorm's beta; no-fold-biases drops them, as published."""
    masks: bool = False
    """Mask R-CNN."""
    keypoints: bool = False
    """Keypoint R-CNN."""
    rpn_regions: Annotated[int, AtLeast(1)] = 256
    """Anchors an image that the RPN's losses sample."""
    box_regions: Annotated[int, AtLeast(1)] = 512
    """Proposals an image that the box head's losses sample."""
    candidates_train: Annotated[int, AtLeast(0)] = 0
    """Anchors a level that enter suppression in training; 0: Detectron2's 2,000 on an FPN, 12,000 on C4."""
    candidates_test: Annotated[int, AtLeast(0)] = 0
    """The same at test; 0: Detectron2's 1,000 on an FPN, 6,000 on C4."""
    proposals_train: Annotated[int, AtLeast(1)] = 1000
    """Proposals an image that the RPN returns in training."""
    proposals_test: Annotated[int, AtLeast(1)] = 1000
    """The same at test."""
    rpn_beta: Positive = 1 / 9
    """Where the RPN's smooth L1 turns into L1."""
    box_beta: Positive = 1 / 9
    """Where the box head's smooth L1 turns into L1."""
    anchor_sizes: tuple[Annotated[int, AtLeast(1, "px"), AtMost(LONGEST, "px")], ...] = (32, 64, 128, 256, 512)
    """Side of the anchors, px: one a level of the FPN, all of them on C4."""
    score_threshold: Annotated[float, AtLeast(0), Below(1)] = 0.05
    """Detections below it are not returned."""
    detections: Annotated[int, AtLeast(1)] = 100
    """Detections an image, at most."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_fixed(self.frozen_fpn)
        if self.frozen_fpn and self.freeze != "backbone+fpn":
            parts = " ".join(self.frozen_fpn)
            raise ValueError(f"frozen-fpn {parts}: goes with --freeze backbone+fpn: empty it by --frozen-fpn alone")
        if self.freeze == "backbone+fpn" and self.neck == "c4":
            raise ValueError("freeze backbone+fpn: --neck c4 has no FPN: use --freeze backbone")
        if self.freeze == "backbone+fpn" and not self.fold_biases:
            raise ValueError("freeze backbone+fpn: keeps the FPN's biases: leave --no-fold-biases out")
        if self.masks and self.keypoints:
            raise ValueError("masks and keypoints: one detector has one of them")
        if self.neck == "c4" and self.keypoints:
            raise ValueError("keypoints need --neck fpn")
        if self.neck == "fpn" and len(self.anchor_sizes) != 5:
            raise ValueError(f"anchor-sizes: an FPN needs five, one a level, not {len(self.anchor_sizes)}")
        if not self.anchor_sizes:
            raise ValueError("anchor-sizes: name at least one")


@dataclass(frozen=True, kw_only=True)
class ImagesConfig:
    """How images reach the detector. Source: Detectron2's defaults, which the published protocols use."""

    min_sizes: tuple[int, ...] = (640, 672, 704, 736, 768, 800)
    """Shorter side in training, px: one of them for each image."""
    max_size: Annotated[int, AtMost(LONGEST, "px")] = 1333
    """Longer side, px, at most."""
    test_size: int = 800
    """Shorter side at test, px."""
    flip: Share = 0.5
    """Probability of a horizontal flip in training."""
    empty: bool = False
    """Train on images without objects too."""
    difficult: bool = True
    """Train on objects marked difficult too."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.min_sizes:
            raise ValueError("min-sizes: at least one is needed")
        for size in (*self.min_sizes, self.test_size):
            if not 32 <= size <= self.max_size:
                raise ValueError(f"size {size} px: must be from 32 to --max-size {self.max_size}")


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """An optimiser over a number of steps. Source: the published protocols, and Detectron2's defaults."""

    steps: Annotated[int, AtLeast(1)] = 90_000
    """Steps of the whole training."""
    batch_size: Annotated[int, AtLeast(1)] = 16
    """Images a step, over all processes and passes. --lr is not rescaled with it unless --lr-batch says so."""
    lr: Annotated[float, AtLeast(0)] = 0.02
    """Learning rate after the warm-up; not rescaled, unless --lr-batch is set."""
    lr_batch: Annotated[int, AtLeast(0)] = 0
    """Batch that --lr is meant for: the lr is scaled by batch-size over it; 0: never scaled."""
    drops: tuple[Annotated[int, AtLeast(1)], ...] = (60_000, 80_000)
    """Steps after which the lr is multiplied by 0.1."""
    warmup_steps: Annotated[int, AtLeast(0)] = 1000
    """Steps of linear warm-up."""
    warmup_factor: Annotated[float, AtLeast(0)] = 0.001
    """Share of the lr at the first step."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd: with --momentum, weight decay an L2 penalty; adamw: with --betas, weight decay apart from the gradients."""
    momentum: Decay = 0.9
    """Momentum of SGD."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of AdamW's running means of the gradients and of their squares."""
    weight_decay: Annotated[float, AtLeast(0)] = 1e-4
    """Weight decay of weights and biases."""
    norm_weight_decay: Annotated[float, AtLeast(0)] = 0.0
    """Weight decay of normalisation layers."""
    clip_norm: Annotated[float, AtLeast(0)] = 0.0
    """Gradients are scaled to this norm at most; 0: never."""
    precise_bn: Annotated[int, AtLeast(0)] = 0
    """Training batches over which BatchNorm's statistics are recomputed before each evaluation; 0: running ones."""
    fraction: PositiveShare = 1.0
    """Share of the training images that is used, chosen by the seed; a smaller share is part of a larger one."""
    seed: Seed = 0
    """Seed of the new weights, the order, the flips and sizes, the sampled regions and the share of the images."""

    def __post_init__(self) -> None:
        check_fields(self)
        if list(self.drops) != sorted(set(self.drops)):
            raise ValueError(f"drops {' '.join(map(str, self.drops))}: each must be above the one before it")

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step (from 0): linear warm-up, then a tenth after each drop."""
        lr = self.lr * (self.batch_size / self.lr_batch if self.lr_batch else 1.0)
        if step < self.warmup_steps:
            lr *= self.warmup_factor + (1 - self.warmup_factor) * step / self.warmup_steps
        return lr * 0.1 ** sum(step >= drop for drop in self.drops)


@dataclass(frozen=True, kw_only=True)
class DetectRecipe:
    """Everything that decides the result of a fine-tuning, except the data and the weights to begin with."""

    name: str = "coco-fpn-1x"
    """Name of the recipe."""
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    images: ImagesConfig = field(default_factory=ImagesConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> DetectRecipe:
        """The recipe that `to_json` wrote.

        Raises:
            ValueError: a field that a recipe does not have, or a value that does not fit.
        """
        try:
            parts: dict[str, dict[str, Any]] = {
                name: {key: tuple(value) if isinstance(value, list) else value for key, value in data[name].items()}
                for name in ("detector", "images", "tune")
            }
            return DetectRecipe(
                name=data["name"],
                detector=DetectorConfig(**parts["detector"]),
                images=ImagesConfig(**parts["images"]),
                tune=TuneConfig(**parts["tune"]),
            )
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a detection recipe of this version: {error}") from None


@dataclass(frozen=True, kw_only=True)
class DetectRun:
    """Where and how a fine-tuning is run."""

    out: Path | None = None
    """Folder of the run; default: runs/RECIPE-DATE-TIME."""
    resume: Resume = False
    """Continue the run in --out exactly where its last checkpoint is; auto: if there is one, else begin. --resume alone
    is --resume yes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: a GPU if there is one."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """bf16 runs convolutions in bfloat16 (autocast), weights stay float32; auto: bf16 where it is faster."""
    images_per_pass: Annotated[int, AtLeast(0)] = 0
    """Images that go forward and backward together, a process: less takes less memory; 0: all of the process's."""
    eval_images: Annotated[int, AtLeast(1)] = 1
    """Images that are detected in together at test."""
    workers: Annotated[int, AtLeast(-1), AtMost(512)] = -1
    """Processes that decode images, for each training process; -1: one a core, 16 at most."""
    eval_every: Annotated[int, AtLeast(0)] = 0
    """Steps between two evaluations; 0: at the end alone."""
    log_every: Annotated[int, AtLeast(1)] = 20
    """Steps between two readings of the metrics (a line is written for every step all the same)."""
    checkpoint_minutes: Annotated[float, AtLeast(0)] = 15.0
    """Minutes between two checkpoints; 0: after every step."""
    max_bad_share: Annotated[float, AtLeast(0)] = 0.1
    """Stop when more than this share of the files read, or of the images evaluated on, cannot be decoded."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """After a loss or weights that are not finite, whose batch is written to nonfinite/ in the run's folder: stop; or
    go back to the last checkpoint, repeat the steps up to that batch and skip it, 5 batches a run at most."""
    timeout_minutes: Annotated[float, AtLeast(0.1)] = 10.0
    """With several processes: minutes that they wait for each other before the run ends with an error. It must be
    longer than the computation of the scores."""
    stop_after: Annotated[int, AtLeast(0)] = 0
    """Stop cleanly after this many steps of this invocation, with a checkpoint; 0: run to the end."""

    def __post_init__(self) -> None:
        check_fields(self)
        normalize_resume(self)
