"""Settings of the probes, importable without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from resim.fields import check_fields

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

    epochs: int = 100
    """Passes over the images."""
    lr: float = 30.0
    """Initial learning rate; it is not rescaled with the batch size."""
    steps: tuple[int, ...] = (60, 80)
    """Epochs at which the learning rate is divided by ten."""
    batch_size: int = 256
    """Images per step; the last batch of an epoch may be smaller."""
    momentum: float = 0.9
    """Momentum of SGD; there is no weight decay."""
    crop_area: tuple[float, float] = (0.08, 1.0)
    """Minimum and maximum fraction of the image's area in a crop."""
    seed: int = 0
    """Seed of the weights, the order of the images and the crops."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.epochs < 1 or self.batch_size < 1 or self.lr <= 0 or self.seed < 0:
            raise ValueError(
                f"epochs {self.epochs}, batch-size {self.batch_size}, lr {self.lr:g}, seed {self.seed}: "
                "epochs and batch size must be at least 1, lr above 0, the seed not negative"
            )


@dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """Settings of linear segmentation and dense retrieval."""

    dense_levels: tuple[str, ...] = ()
    """Maps for segmentation and retrieval, such as C4 C5 P4; default: every map of a network, and all together."""
    dense_cells: int = SEGMENTATION_CELLS
    """Maximum number of training cells of a map for linear segmentation, equally many of each image."""
    dense_memory: float = 4.0
    """Maximum memory for the maps of the training or the test images, and for a fit, GiB."""
    retrieval_shares: tuple[float, ...] = RETRIEVAL_SHARES
    """Fractions of the training images in the memory of dense retrieval; each is measured."""
    retrieval_k: int = RETRIEVAL_NEIGHBOURS
    """Neighbours of a cell in dense retrieval."""
    retrieval_temperature: float = RETRIEVAL_TEMPERATURE
    """Temperature of the softmax over the neighbours."""
    retrieval_cells: int = RETRIEVAL_CELLS
    """Maximum number of cells in the memory of dense retrieval, equally many of each image."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("dense_cells", "retrieval_k", "retrieval_cells"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name.replace('_', '-')} {getattr(self, name)}: must be at least 1")
        for name in ("dense_memory", "retrieval_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name.replace('_', '-')} {getattr(self, name)}: must be above 0")
        wrong = next((share for share in self.retrieval_shares if not 0 < share <= 1), None)
        if wrong is not None or not self.retrieval_shares:
            raise ValueError(f"retrieval-shares {wrong}: each must be above 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Settings of `resim probe`."""

    probes: tuple[
        Literal["knn", "linear", "linear-sgd", "correspondence", "health", "segmentation", "retrieval"], ...
    ] = ("knn", "linear", "correspondence", "health")
    """What to measure; linear: on cached features, in minutes; linear-sgd: MoCo's protocol, 100 epochs; segmentation
    and retrieval need label maps (see docs/probes.md)."""
    image_size: int = 0
    """Side of a view, px; 0: that of the first checkpoint's recipe, or 224 if there is no recipe."""
    k: int = NEIGHBOURS
    """Neighbours that vote, at most the number of training images."""
    temperature: float = TEMPERATURE
    """Temperature of the votes."""
    linear_level: str = "C5"
    """Level of the linear probe on cached features: C3, C4, C5, an FPN level such as P4, or global."""
    pairs: int = 256
    """Images whose views are compared for correspondence and health, sampled at random; 0: all."""
    radius: float = 0.0
    """Maximum distance between a correct cell and the true position, px of the view; 0: one stride of its level."""
    images: int = 0
    """Maximum number of images of each set, sampled at random; 0: all."""
    sgd_epochs: int = LinearConfig.epochs
    """Epochs of linear-sgd."""
    sgd_steps: tuple[int, ...] = LinearConfig.steps
    """Epochs of linear-sgd at which the learning rate is divided by ten."""
    sgd_lr: float = LinearConfig.lr
    """Initial learning rate of linear-sgd; it is not rescaled with the batch size."""
    sgd_batch_size: int = LinearConfig.batch_size
    """Images per step of linear-sgd."""
    seed: int = 0
    """Seed of all random choices."""
    dense: DenseConfig = field(default_factory=DenseConfig)

    def __post_init__(self) -> None:
        check_fields(self)
        least = {"image_size": 0, "k": 1, "pairs": 0, "radius": 0, "images": 0, "seed": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name.replace('_', '-')} {getattr(self, name)}: must be at least {value}")
        if not self.temperature > 0:
            raise ValueError(f"temperature {self.temperature}: must be above 0")
        if not self.probes:
            raise ValueError(
                "probes: name at least one of knn, linear, linear-sgd, correspondence, health, segmentation, retrieval"
            )
        self.sgd()
        if 0 < self.image_size < LEAST_SIZE:
            raise ValueError(f"image-size {self.image_size}: must be at least {LEAST_SIZE} px")
        if self.image_size > MOST_SIZE:
            raise ValueError(f"image-size {self.image_size}: must be at most {MOST_SIZE} px")

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
