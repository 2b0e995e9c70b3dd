"""`--val-fraction` of `resim detect train` and `resim compare`: a share of the images held out to evaluate on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from resim.errors import UserError

if TYPE_CHECKING:
    from resim.cli.detect import DataOptions
    from resim.datasets.records import DetectionData


def check_val_options(options: DataOptions) -> None:
    """Check the options of what is evaluated on, before anything is read.

    Raises:
        UserError: options that do not go together, or a share that leaves nothing.
    """
    if options.val_fraction is None:
        return
    given = {"--val": options.val, "--val-split": options.val_split, "--val-images-in": options.val_images_in}
    for option, value in given.items():
        if value:
            words = [value] if isinstance(value, str) else map(str, value)
            raise UserError(
                f"--val-fraction {options.val_fraction:g} with {option} {' '.join(words)}: the one holds images of "
                "DATA out, the other is for images of their own to evaluate on: leave one of them out"
            )

    from resim.datasets.validation_split import check_fraction

    check_fraction(options.val_fraction)


def with_held_out(
    data: DetectionData, val: DetectionData | None, options: DataOptions, seed: int, folders: Sequence[Path]
) -> tuple[DetectionData, DetectionData | None]:
    """What is trained and evaluated on, where a share of the data is held out: a run that goes on keeps its own.

    Args:
        data: all that was read.
        val: what --val names.
        options: of the data.
        seed: of the draw.
        folders: of the runs that go on.

    Raises:
        UserError: another share than that of the run, --val for a run that has one, or too few images.
    """
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
