"""What the probes measure, and how, as plain data, without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from resim.fields import check_fields

NEIGHBOURS, TEMPERATURE = 200, 0.07  # Wu et al.
LEAST_SIZE = 64  # px: below it the top map has a single cell
MOST_SIZE = 4096  # px


@dataclass(frozen=True, kw_only=True)
class LinearConfig:
    """SGD of the published linear probe; every default is MoCo's."""

    epochs: int = 100
    """Times that every image is seen."""
    lr: float = 30.0
    """Learning rate at the start, for the batch size as it is."""
    steps: tuple[int, ...] = (60, 80)
    """Epochs at which the learning rate is divided by ten."""
    batch_size: int = 256
    """Images a step; the last batch of an epoch may be smaller."""
    momentum: float = 0.9
    """Momentum of SGD; there is no weight decay."""
    crop_area: tuple[float, float] = (0.08, 1.0)
    """Least and largest share of the image's area in a crop."""
    seed: int = 0
    """Of the weights, the order of the images and the crops."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.epochs < 1 or self.batch_size < 1 or self.lr <= 0 or self.seed < 0:
            raise ValueError(
                f"epochs {self.epochs}, batch-size {self.batch_size}, lr {self.lr:g}, seed {self.seed}: "
                "epochs and batch size must be at least 1, lr above 0, the seed not negative"
            )


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """What is measured, and how."""

    probes: tuple[Literal["knn", "linear", "linear-sgd", "correspondence", "health"], ...] = (
        "knn", "linear", "correspondence", "health",
    )  # fmt: skip
    """What to measure; linear: on cached features, in minutes; linear-sgd: MoCo's protocol, 100 epochs."""
    image_size: int = 0
    """Side of a view, px; 0: that of the first checkpoint's recipe, 224 where none has one."""
    k: int = NEIGHBOURS
    """Neighbours that vote (of fewer training images all do)."""
    temperature: float = TEMPERATURE
    """Temperature of their votes."""
    linear_level: str = "C5"
    """Level of the linear probe on cached features: C3, C4, C5, an FPN level such as P4, or global."""
    pairs: int = 256
    """Images whose views are compared for correspondence and health, drawn at random; 0: all."""
    radius: float = 0.0
    """Distance at which a cell counts as the right one, px of the view; 0: one stride of its level."""
    images: int = 0
    """Most images of each set, drawn at random; 0: all."""
    sgd_epochs: int = LinearConfig.epochs
    """Of linear-sgd: epochs."""
    sgd_steps: tuple[int, ...] = LinearConfig.steps
    """Of linear-sgd: epochs at which the learning rate is divided by ten."""
    sgd_lr: float = LinearConfig.lr
    """Of linear-sgd: learning rate at the start, for the batch size as it is."""
    sgd_batch_size: int = LinearConfig.batch_size
    """Of linear-sgd: images a step."""
    seed: int = 0
    """Seed of everything random."""

    def __post_init__(self) -> None:
        check_fields(self)
        least = {"image_size": 0, "k": 1, "pairs": 0, "radius": 0, "images": 0, "seed": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name.replace('_', '-')} {getattr(self, name)}: must be at least {value}")
        if not self.temperature > 0:
            raise ValueError(f"temperature {self.temperature}: must be above 0")
        if not self.probes:
            raise ValueError("probes: name at least one of knn, linear, linear-sgd, correspondence, health")
        self.sgd()
        if 0 < self.image_size < LEAST_SIZE:
            raise ValueError(f"image-size {self.image_size}: must be at least {LEAST_SIZE} px")
        if self.image_size > MOST_SIZE:
            raise ValueError(f"image-size {self.image_size}: must be at most {MOST_SIZE} px")

    def sgd(self) -> LinearConfig:
        """The schedule of linear-sgd.

        Raises:
            ValueError: a setting that cannot be.
        """
        return LinearConfig(
            epochs=self.sgd_epochs,
            steps=self.sgd_steps,
            lr=self.sgd_lr,
            batch_size=self.sgd_batch_size,
            seed=self.seed,
        )
