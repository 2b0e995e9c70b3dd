"""What `resim probe` reads and writes for segmentation and retrieval: label maps, and the picture of predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from resim.errors import UserError
from resim.probes.config import LabelOptions
from resim.probes.label_maps import LabelMaps
from resim.probes.labelled_images import LabelledImages
from resim.probes.segmentation_labels import read_labelled_sets


def read_label_sets(
    data: str, test: str | None, options: LabelOptions, *, most: int, seed: int
) -> tuple[LabelledImages, LabelledImages]:
    """The labelled images that the options name, at most `most` of each set (0: all).

    Raises:
        UserError: as `read_labelled_sets`.
    """
    train, tested = read_labelled_sets(
        data, test, labels=options.labels, test_labels=options.test_labels, split=options.split, seed=seed
    )
    return train.sample(most, seed), tested.sample(most, seed)


def check_no_labels(data: str, options: LabelOptions) -> None:
    """Refuse label maps where no probe reads them.

    Raises:
        UserError: an option or a file that is for segmentation and retrieval.
    """
    given = [one.name for one in dataclasses.fields(LabelOptions) if getattr(options, one.name) != one.default]
    if given:
        raise UserError(f"--{given[0].replace('_', '-')}: is for --probes segmentation retrieval: add them")
    if data.lower().endswith(".json"):
        raise UserError(f"{data}: a COCO file holds label maps, which --probes segmentation retrieval read: add them")


def greeting(train: LabelMaps, test: LabelMaps) -> Sequence[str]:
    """What the label maps are, and what was left out of them."""
    ground = "no background" if test.background is None else f"background: {test.classes[test.background]}"
    lines = [
        f"label maps of {train.labels.shape[-1]} px: {len(train)} training images of {train.images.source}, "
        f"{len(test)} test images of {test.images.source}; {len(test.classes)} classes, {ground}"
    ]
    return [*lines, *train.notes, *test.notes]
