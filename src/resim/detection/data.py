"""Which data a fine-tuning trains and evaluates on: DATA, --val or --val-fraction, and what a resumed run recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from resim.errors import UserError

if TYPE_CHECKING:
    from resim.datasets.records import DetectionData

NO_VAL = (
    "--val is needed: a split of DATA or another data set, to evaluate on; or --val-fraction 0.2, which holds a fifth "
    "of the images out for it"
)


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """A labelled data set to train on, and one to evaluate on."""

    split: str | None = None
    """train2017 for a folder of COCO files, "2007 trainval+2012 trainval" for VOC, train or val for Cityscapes
    and YOLO."""
    val: str | None = None
    """To evaluate on: a split of DATA, or another data set's path; none: no evaluation."""
    val_split: str | None = None
    """The split, where --val is a path."""
    val_fraction: float | None = None
    """Where there is no --val: share of the images, such as 0.2, that is chosen at random by the seed, evaluated on and
    never trained on."""
    images_in: tuple[Path, ...] = ()
    """Folders of the images, for a COCO file whose images are not next to it."""
    val_images_in: tuple[Path, ...] = ()
    """The same for --val."""
    classes: tuple[str, ...] = ()
    """Names of the classes, for VOC's layout with others than VOC's twenty, or for YOLO files without names."""
    crowd_as_objects: bool = False
    """Take crowd regions (iscrowd 1) of COCO files as objects; CVAT, RectLabel and SAM's tools mark brush masks so."""
    strict: bool = False
    """Stop at faults of the annotations instead of repairing and listing them."""


def read_train_and_val(
    path: Path, options: DataOptions, *, seed: int = 0, folders: Sequence[Path] = ()
) -> tuple[DetectionData, DetectionData | None]:
    """Read what is trained and what is evaluated on.

    Args:
        path: COCO JSON file, YOLO's data.yaml, or a folder in COCO's, VOC's, Cityscapes' or YOLO's layout.
        options: of the data.
        seed: of the choice of the images that --val-fraction holds out.
        folders: of runs to resume, which keep the images that they hold out.

    Returns:
        The two data sets; the second is None where nothing is evaluated.

    Raises:
        UserError: data that cannot be read, options that do not go together, a share of the images that leaves nothing
            or is not that of the runs.
    """
    _check_val_options(options)
    data, val = _read(path, options)
    return _held_out(data, val, options, seed, folders)


def read_compared_data(
    path: Path, options: DataOptions, *, seed: int, out: Path
) -> tuple[DetectionData, DetectionData]:
    """Read what the runs of a comparison are trained and evaluated on.

    Args:
        path: as in `read_train_and_val`.
        options: of the data.
        seed: likewise.
        out: folder of the comparison, which may contain runs already.

    Raises:
        UserError: nothing to evaluate on, or as `read_train_and_val`.
    """
    if (out / "config.json").exists():
        raise UserError(f"--out {out}: is the folder of a run itself; name another for the comparison")
    folders = sorted(config.parent for config in out.glob("*/config.json"))
    if options.val is None and options.val_fraction is None and not folders:
        raise UserError(NO_VAL)
    data, val = read_train_and_val(path, options, seed=seed, folders=folders)
    if val is None:
        raise UserError(NO_VAL)
    return data, val


def _check_val_options(options: DataOptions) -> None:
    """Check the options of what is evaluated on, before anything is read."""
    if options.val_fraction is None:
        return
    others = {"--val": options.val, "--val-split": options.val_split, "--val-images-in": options.val_images_in}
    for option, value in others.items():
        if value:
            words = [value] if isinstance(value, str) else map(str, value)
            raise UserError(
                f"--val-fraction {options.val_fraction:g} with {option} {' '.join(words)}: the one holds images of "
                "DATA out, the other is for images of their own to evaluate on: leave one of them out"
            )

    from resim.datasets.validation_split import check_fraction

    check_fraction(options.val_fraction)


def _read(path: Path, options: DataOptions) -> tuple[DetectionData, DetectionData | None]:
    from resim.datasets.layouts import is_data_set, read_detection

    def read(where: Path, split: str | None, images: tuple[Path, ...]) -> DetectionData:
        return read_detection(
            where, split, images=images or None, classes=options.classes or None, strict=options.strict,
            crowd_as_objects=options.crowd_as_objects,
        )  # fmt: skip

    # a folder of images next to DATA often has the name of a split
    is_path = options.val is not None and (len(Path(options.val).parts) > 1 or is_data_set(Path(options.val)))
    if options.val_split is not None and not is_path:
        raise UserError(f"--val-split {options.val_split}: goes with a --val that is the path of another data set")
    data = read(path, options.split, options.images_in)
    if options.val is None:
        return data, None
    if is_path:
        val = read(Path(options.val), options.val_split, options.val_images_in)
    else:
        val = read(path, options.val, options.val_images_in or options.images_in)

    from resim.detection.prepare import with_classes_of  # imports torch, which a first error does not need

    return data, with_classes_of(val, data.classes, data.category_ids, data.source)


def _held_out(
    data: DetectionData, val: DetectionData | None, options: DataOptions, seed: int, folders: Sequence[Path]
) -> tuple[DetectionData, DetectionData | None]:
    """The data without the share that is held out, and that share; a resumed run keeps the one that it recorded."""
    from resim.datasets.validation_split import hold_out, recorded_split, restore_held_out

    stored = recorded_split(folders)
    begun = next((folder for folder in folders if (folder / "config.json").exists()), None)
    remedy = "leave the option out to go on with it, or name another --out"
    if stored is None:
        if val is not None or options.val_fraction is None:
            return data, val
        if begun is not None:
            raise UserError(f"--val-fraction {options.val_fraction:g}: the run in {begun} holds no share out: {remedy}")
        return hold_out(data, options.val_fraction, seed)
    share = f"holds out a share of {stored['val_fraction']:g} to evaluate on"
    if val is not None:
        raise UserError(f"--val {options.val}: the run {share}: {remedy}")
    if options.val_fraction not in (None, stored["val_fraction"]):
        raise UserError(f"--val-fraction {options.val_fraction:g}: the run {share}: {remedy}")
    return restore_held_out(data, stored)
