"""Detect in images without labels: pictures, and a COCO results file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from resim.errors import UserError

WHEN_STOPPED = (
    "pictures that are drawn are kept, results.json is not written: the same command starts from the beginning"
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `resim detect predict`."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE|DIR [...]")]
    """Images, folders of them, or a YOLO data.yaml."""
    model: Path
    """A fine-tuning's folder or checkpoint."""
    out: Path = Path("detections")
    """Folder for the pictures and results.json."""
    threshold: float = 0.5
    """Score from which detections are drawn (results.json has all)."""
    pictures: bool = True
    """Draw the detections on every image."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: a GPU if there is one."""


def run(options: Options) -> None:
    """Detect, and print the path of the results.

    Raises:
        UserError: as `predict_images`.
    """
    if not 0 <= options.threshold <= 1:
        raise UserError(f"--threshold {options.threshold}: must be in [0, 1]")

    from resim.detection.predict import predict_images

    predict_images(
        options.model, options.images, options.out, threshold=options.threshold, pictures=options.pictures,
        device=options.device,
    )  # fmt: skip
    print(options.out / "results.json")
