"""What the probes measure, and how, as plain data, without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from resim.fields import AtLeast, AtMost, Positive, PositiveShare, check_fields

NEIGHBOURS, TEMPERATURE = 200, 0.07  # Wu et al.
LEAST_SIZE = 64  # px: below it the top map has a single cell
MOST_SIZE = 4096  # px
SEGMENTATION_CELLS = 100_000
RETRIEVAL_SHARES = (0.01, 0.1, 1.0)
RETRIEVAL_NEIGHBOURS, RETRIEVAL_TEMPERATURE = 30, 0.02
RETRIEVAL_CELLS = 20_000
BACKGROUND, VOID_VALUES = 0, (255,)
DENSE: tuple[Literal["segmentation", "retrieval"], ...] = ("segmentation", "retrieval")
"""Probes that need a label map of every image."""


@dataclass(frozen=True, kw_only=True)
class LinearConfig:
    """SGD of the published linear probe; every default is MoCo's."""

    epochs: Annotated[int, AtLeast(1)] = 100
    """Passes over the images."""
    lr: Positive = 30.0
    """Learning rate at the start, for the batch size as it is."""
    steps: tuple[int, ...] = (60, 80)
    """Epochs at which the learning rate is divided by ten."""
    batch_size: Annotated[int, AtLeast(1)] = 256
    """Images a step; the last batch of an epoch may be smaller."""
    momentum: float = 0.9
    """Momentum of SGD; there is no weight decay."""
    crop_area: tuple[float, float] = (0.08, 1.0)
    """Least and largest share of the image's area in a crop."""
    seed: Annotated[int, AtLeast(0)] = 0
    """Of the weights, the order of the images and the crops."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """How linear segmentation and dense retrieval are measured."""

    dense_levels: tuple[str, ...] = ()
    """Maps for segmentation and retrieval, such as C4 C5 P4; default: every map of a network, and all together."""
    dense_cells: Annotated[int, AtLeast(1)] = SEGMENTATION_CELLS
    """Most training cells of a map for linear segmentation, the same number of each image."""
    dense_memory: Positive = 4.0
    """Most memory for the maps of the training or the test images, and for a fit, GiB."""
    retrieval_shares: tuple[PositiveShare, ...] = RETRIEVAL_SHARES
    """Shares of the training images that are put into the memory of dense retrieval, each in turn."""
    retrieval_k: Annotated[int, AtLeast(1)] = RETRIEVAL_NEIGHBOURS
    """Neighbours of a cell in dense retrieval."""
    retrieval_temperature: Positive = RETRIEVAL_TEMPERATURE
    """Temperature of the softmax over them."""
    retrieval_cells: Annotated[int, AtLeast(1)] = RETRIEVAL_CELLS
    """Most cells in the memory of dense retrieval, the same number of each image."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.retrieval_shares:
            raise ValueError("retrieval-shares: name at least one")


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """What is measured, and how."""

    probes: tuple[
        Literal["knn", "linear", "linear-sgd", "correspondence", "health", "segmentation", "retrieval"], ...
    ] = ("knn", "linear", "correspondence", "health")
    """What to measure; linear: on cached features, in minutes; linear-sgd: MoCo's protocol, 100 epochs; segmentation
    and retrieval need label maps (docs/probes.md says how they are read)."""
    image_size: Annotated[int, AtLeast(0), AtMost(MOST_SIZE, "px")] = 0
    """Side of a view, px; 0: that of the first checkpoint's recipe, 224 where none has one."""
    k: Annotated[int, AtLeast(1)] = NEIGHBOURS
    """Neighbours that vote (of fewer training images all do)."""
    temperature: Positive = TEMPERATURE
    """Temperature of their votes."""
    linear_level: str = "C5"
    """Level of the linear probe on cached features: C3, C4, C5, an FPN level such as P4, or global."""
    pairs: Annotated[int, AtLeast(0)] = 256
    """Images whose views are compared for correspondence and health, drawn at random; 0: all."""
    radius: Annotated[float, AtLeast(0)] = 0.0
    """Distance at which a cell counts as the right one, px of the view; 0: one stride of its level."""
    images: Annotated[int, AtLeast(0)] = 0
    """Most images of each set, drawn at random; 0: all."""
    sgd_epochs: Annotated[int, AtLeast(1)] = LinearConfig.epochs
    """Of linear-sgd: epochs."""
    sgd_steps: tuple[int, ...] = LinearConfig.steps
    """Of linear-sgd: epochs at which the learning rate is divided by ten."""
    sgd_lr: Positive = LinearConfig.lr
    """Of linear-sgd: learning rate at the start, for the batch size as it is."""
    sgd_batch_size: Annotated[int, AtLeast(1)] = LinearConfig.batch_size
    """Of linear-sgd: images a step."""
    seed: Annotated[int, AtLeast(0)] = 0
    """Seed of everything random."""
    dense: DenseConfig = field(default_factory=DenseConfig)

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.probes:
            raise ValueError(
                "probes: name at least one of knn, linear, linear-sgd, correspondence, health, segmentation, retrieval"
            )
        if 0 < self.image_size < LEAST_SIZE:
            raise ValueError(f"image-size {self.image_size}: must be at least {LEAST_SIZE} px")

    def sgd(self) -> LinearConfig:
        """The schedule of linear-sgd."""
        return LinearConfig(
            epochs=self.sgd_epochs,
            steps=self.sgd_steps,
            lr=self.sgd_lr,
            batch_size=self.sgd_batch_size,
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """Where label maps are, for segmentation and retrieval."""

    labels: Path | None = None
    """Label maps of DATA's images: a folder of PNGs with their names, or a COCO file of masks. Not needed where DATA is
    a COCO file, a VOC folder, or a folder that holds images and, say, segmentation."""
    test_labels: Path | None = None
    """The same for the images of --test."""
    split: tuple[str, str] = ("train", "val")
    """Lists of ImageSets/Segmentation to learn from and to test on, where DATA is a VOC folder."""
    void: tuple[int, ...] = VOID_VALUES
    """Values in label PNGs that count nowhere; without a value: none."""
    background: int = BACKGROUND
    """Value of the background, for the foreground IoU; -1: there is none."""
    classes: tuple[str, ...] = ()
    """Classes to keep beside the background, by name (by value where they have none); pixels of others are void."""
