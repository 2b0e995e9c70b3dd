"""Score a detector, or a results file, by the data set's official evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from resim.errors import UserError

WHEN_STOPPED = "no scores are written: the same command starts from the beginning"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `resim detect eval`."""

    model: Annotated[Path, tyro.conf.Positional]
    """A fine-tuning's folder or checkpoint, or a COCO results file (.json) to score."""
    data: Annotated[Path, tyro.conf.Positional]
    """COCO JSON file, YOLO's data.yaml, or a folder in COCO's, VOC's, Cityscapes' or YOLO's layout."""
    split: str | None = None
    """val2017 for a folder of COCO files, "2007 test" for VOC, val for Cityscapes and YOLO."""
    images_in: tuple[Path, ...] = ()
    """Folders of the images, for a COCO file whose images are not next to it."""
    classes: tuple[str, ...] = ()
    """Names of the classes, for VOC's layout with others than VOC's twenty, or for YOLO files without names."""
    crowd_as_objects: bool = False
    """Take crowd regions (iscrowd 1) of COCO files as objects; CVAT, RectLabel and SAM's tools mark brush masks so."""
    all_images: bool = False
    """Score all images of DATA. Without it, a run with --val-fraction is scored on the part of its own data that it
    held out."""
    strict: bool = False
    """Stop at faults of the annotations instead of repairing and listing them."""
    out: Path | None = None
    """Folder for scores.jsonl, results.json and pictures; none: the scores are only printed."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: a GPU if there is one."""
    eval_images: int = 1
    """Images that are detected in together."""
    max_bad_share: float = 0.1
    """Stop when more than this share of the images cannot be decoded; these do not count."""
    workers: int = 2
    """Processes that decode images."""


def run(options: Options) -> None:
    """Score, print, and write where --out names a folder.

    Raises:
        UserError: as `read_detection`, `score_detector` and `score_results`; options that cannot work.
    """
    if options.out is not None and (options.out / "config.json").exists():
        raise UserError(f"--out {options.out}: holds a run, whose own scores would be replaced: name another folder")
    bounds = {"eval_images": 1, "max_bad_share": 0, "workers": 0}
    for name, least in bounds.items():
        value = getattr(options, name)
        if not value >= least:
            raise UserError(f"--{name.replace('_', '-')} {value:g}: must be at least {least}")

    from resim.datasets.layouts import read_detection

    is_results = options.model.suffix == ".json"
    data = read_detection(
        options.data, options.split, images=options.images_in or None, classes=options.classes or None,
        strict=options.strict, check_images=not is_results, crowd_as_objects=options.crowd_as_objects,
    )  # fmt: skip

    from resim.detection.score import score_detector, score_results

    if is_results:
        score_results(options.model, data, options.out)
    else:
        score_detector(
            options.model, data, options.out, all_images=options.all_images, device=options.device,
            batch=options.eval_images, workers=options.workers, max_bad_share=options.max_bad_share,
        )  # fmt: skip
