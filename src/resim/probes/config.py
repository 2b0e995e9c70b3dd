"""Settings of the probes, importable without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from resim.fields import AtLeast, AtMost, Positive, PositiveShare, check_fields

NEIGHBOURS, TEMPERATURE = 200, 0.07  # Wu et al.
LEAST_SIZE = 64  # px: in smaller views C5 has a single cell
MOST_SIZE = 4096  # px
SEGMENTATION_CELLS = 100_000
RETRIEVAL_SHARES = (0.01, 0.1, 1.0)
RETRIEVAL_NEIGHBOURS, RETRIEVAL_TEMPERATURE = 30, 0.02
RETRIEVAL_CELLS = 20_000
BACKGROUND, VOID_VALUES = 0, (255,)
DENSE: tuple[Literal["segmentation", "retrieval"], ...] = ("segmentation", "retrieval")
"""Probes that need a label map of every image."""

ScorePath = tuple[str, ...]
"""Key of a score: ("knn", "C5"), ("correspondence", "scale", "P4"), ("retrieval", "10%", "P4")."""


@dataclass(frozen=True, kw_only=True)
class LinearConfig:
    """SGD of the published linear probe; the defaults are MoCo's."""

    epochs: Annotated[int, AtLeast(1)] = 100
    """Passes over the images."""
    lr: Positive = 30.0
    """Initial learning rate; it is not rescaled with the batch size."""
    steps: tuple[int, ...] = (60, 80)
    """Epochs at which the learning rate is divided by ten."""
    batch_size: Annotated[int, AtLeast(1)] = 256
    """Images per step; the last batch of an epoch may be smaller."""
    momentum: float = 0.9
    """Momentum of SGD; there is no weight decay."""
    crop_area: tuple[float, float] = (0.08, 1.0)
    """Minimum and maximum fraction of the image's area in a crop."""
    seed: Annotated[int, AtLeast(0)] = 0
    """Seed of the weights, the order of the images and the crops."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """Settings of linear segmentation and dense retrieval."""

    dense_levels: tuple[str, ...] = ()
    """Maps for segmentation and retrieval, such as C4 C5 P4; default: every map of a network, and all together."""
    dense_cells: Annotated[int, AtLeast(1)] = SEGMENTATION_CELLS
    """Maximum number of training cells of a map for linear segmentation, equally many of each image."""
    dense_memory: Positive = 4.0
    """Maximum memory for the maps of the training or the test images, and for a fit, GiB."""
    retrieval_shares: tuple[PositiveShare, ...] = RETRIEVAL_SHARES
    """Fractions of the training images in the memory of dense retrieval; each is measured."""
    retrieval_k: Annotated[int, AtLeast(1)] = RETRIEVAL_NEIGHBOURS
    """Neighbours of a cell in dense retrieval."""
    retrieval_temperature: Positive = RETRIEVAL_TEMPERATURE
    """Temperature of the softmax over the neighbours."""
    retrieval_cells: Annotated[int, AtLeast(1)] = RETRIEVAL_CELLS
    """Maximum number of cells in the memory of dense retrieval, equally many of each image."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.retrieval_shares:
            raise ValueError("retrieval-shares: name at least one")


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Settings of `resim probe`."""

    probes: tuple[
        Literal["knn", "linear", "linear-sgd", "correspondence", "health", "segmentation", "retrieval"], ...
    ] = ("knn", "linear", "correspondence", "health")
    """What to measure; linear: on cached features, in minutes; linear-sgd: MoCo's protocol, 100 epochs; segmentation
    and retrieval need label maps (docs/probes.md says how they are read)."""
    image_size: Annotated[int, AtLeast(0), AtMost(MOST_SIZE, "px")] = 0
    """Side of a view, px; 0: that of the first checkpoint's recipe, or 224 if there is no recipe."""
    k: Annotated[int, AtLeast(1)] = NEIGHBOURS
    """Neighbours that vote, at most the number of training images."""
    temperature: Positive = TEMPERATURE
    """Temperature of the votes."""
    linear_level: str = "C5"
    """Level of the linear probe on cached features: C3, C4, C5, an FPN level such as P4, or global."""
    pairs: Annotated[int, AtLeast(0)] = 256
    """Images whose views are compared for correspondence and health, sampled at random; 0: all."""
    radius: Annotated[float, AtLeast(0)] = 0.0
    """Maximum distance between a correct cell and the true position, px of the view; 0: one stride of its level."""
    images: Annotated[int, AtLeast(0)] = 0
    """Maximum number of images of each set, sampled at random; 0: all."""
    sgd_epochs: Annotated[int, AtLeast(1)] = LinearConfig.epochs
    """Epochs of linear-sgd."""
    sgd_steps: tuple[int, ...] = LinearConfig.steps
    """Epochs of linear-sgd at which the learning rate is divided by ten."""
    sgd_lr: Positive = LinearConfig.lr
    """Initial learning rate of linear-sgd; it is not rescaled with the batch size."""
    sgd_batch_size: Annotated[int, AtLeast(1)] = LinearConfig.batch_size
    """Images per step of linear-sgd."""
    seed: Annotated[int, AtLeast(0)] = 0
    """Seed of all random choices."""
    dense: DenseConfig = field(default_factory=DenseConfig)

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.probes:
            raise ValueError(
                "probes: name at least one of knn, linear, linear-sgd, correspondence, health, segmentation, retrieval"
            )
        if self.linear_level != "C5" and "linear" not in self.probes:
            raise ValueError(f"linear-level {self.linear_level}: linear is not among the probes; add it to --probes")
        if 0 < self.image_size < LEAST_SIZE:
            raise ValueError(f"image-size {self.image_size}: must be at least {LEAST_SIZE} px")

    def sgd(self) -> LinearConfig:
        """The settings of linear-sgd.

        Raises:
            ValueError: a setting is out of its range.
        """
        return LinearConfig(
            epochs=self.sgd_epochs,
            steps=self.sgd_steps,
            lr=self.sgd_lr,
            batch_size=self.sgd_batch_size,
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """Label maps for segmentation and retrieval."""

    labels: Path | None = None
    """Label maps of DATA's images: a folder of PNGs with the same names, or a COCO file with masks. Not needed if DATA
    is a COCO file, a VOC folder, or a folder with subfolders such as images and segmentation."""
    test_labels: Path | None = None
    """The same for the images of --test."""
    split: tuple[str, str] = ("train", "val")
    """Lists of ImageSets/Segmentation to train and to test on, if DATA is a VOC folder."""
    void: tuple[int, ...] = VOID_VALUES
    """Values in label PNGs that are ignored; without a value: none."""
    background: int = BACKGROUND
    """Value of the background, for the foreground IoU; -1: there is none."""
    classes: tuple[str, ...] = ()
    """Classes to use in addition to the background, by name (or by value if they have none); all others are void."""
