"""What a probe reads: images with classes, without, or with label maps; and the lines that describe them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from resim.errors import UserError
from resim.probes.config import DENSE, LabelOptions, ProbeConfig
from resim.probes.label_maps import LabelMaps, load_label_maps
from resim.probes.labelled_images import LabelledImages
from resim.probes.labels import ProbeImages, read_sets
from resim.probes.segmentation_labels import read_labelled_sets

_BY_CLASSES = ("knn", "linear", "linear-sgd")


@dataclass(frozen=True, kw_only=True)
class ProbeData:
    """Images to learn from, images to test on, and their label maps where a probe reads them."""

    train: ProbeImages
    test: ProbeImages
    labels: tuple[LabelMaps, LabelMaps] | None

    def lines(self, config: ProbeConfig) -> list[str]:
        """What is measured on what, and what is left out, as lines for the user."""
        return [
            *_image_lines(self.train, self.test, config),
            *([] if self.labels is None else _map_lines(*self.labels)),
        ]


@dataclass(frozen=True, kw_only=True)
class ProbeSources:
    """The images that were found; nothing is decoded yet."""

    images: tuple[ProbeImages, ProbeImages] | None
    labelled: tuple[LabelledImages, LabelledImages] | None

    @property
    def has_classes(self) -> bool:
        """Whether every image has a class."""
        return self.images is not None and all(part.labels is not None for part in self.images)

    def load(self, options: LabelOptions, config: ProbeConfig) -> ProbeData:
        """Choose at most `config.images` of each set, and load the label maps at the image size of `config`.

        Raises:
            UserError: as `load_label_maps`.
        """
        sets, maps = self.images, None
        if self.labelled is not None:
            ground = None if options.background < 0 else options.background
            maps = load_label_maps(
                *self.labelled, config.image_size, void=options.void, background=ground, only=options.classes
            )
            sets = maps[0].images, maps[1].images
        assert sets is not None
        train, test = (part.sample(config.images, config.seed) for part in sets)
        return ProbeData(train=train, test=test, labels=maps)


def find_sources(
    data: str, test: str | None, options: LabelOptions, config: ProbeConfig, *, unlabelled: bool
) -> ProbeSources:
    """Find the images that the probes of `config` need.

    Raises:
        UserError: as `read_sets` and `read_labelled_sets`; label maps that no probe reads.
    """
    if set(DENSE) & set(config.probes):
        sets = read_labelled_sets(
            data, test, labels=options.labels, test_labels=options.test_labels, split=options.split, seed=config.seed
        )
        train, tested = (part.sample(config.images, config.seed) for part in sets)
        return ProbeSources(images=None, labelled=(train, tested))
    _check_no_labels(data, options)
    images = read_sets(data, test, labelled=not unlabelled, seed=config.seed)
    _check_classes(images, config, unlabelled=unlabelled)
    return ProbeSources(images=images, labelled=None)


def _check_classes(sets: Sequence[ProbeImages], config: ProbeConfig, *, unlabelled: bool) -> None:
    """Refuse to measure nothing: probes of classes alone, on images without classes."""
    lacking = next((images for images in sets if images.labels is None), None)
    if lacking is None or not config.probes or set(config.probes) - set(_BY_CLASSES):
        return
    option = f"--probes {' '.join(config.probes)}"
    if unlabelled:
        raise UserError(f"--unlabelled with {option}: these probes measure classes: leave one of the two out")
    reason = f": {lacking.why}" if lacking.why else ""
    raise UserError(f"{option}: the images of {lacking.source} have no classes{reason}")


def _check_no_labels(data: str, options: LabelOptions) -> None:
    names = [field.name for field in dataclasses.fields(LabelOptions) if getattr(options, field.name) != field.default]
    if names:
        raise UserError(f"--{names[0].replace('_', '-')}: is for --probes segmentation retrieval: add them")
    if data.lower().endswith(".json"):
        raise UserError(f"{data}: a COCO file holds label maps, which --probes segmentation retrieval read: add them")


def _image_lines(train: ProbeImages, test: ProbeImages, config: ProbeConfig) -> list[str]:
    lines = [f"views of {config.image_size} px, test: {test}"]
    notes = dict.fromkeys(f"{images.source}: {images.note}" for images in (train, test) if images.note)
    by_classes = set(_BY_CLASSES) & set(config.probes)
    if not by_classes:
        return [*lines, *notes]
    if train.labels is None or test.labels is None:
        reason = next((f"; {images.source}: {images.why}" for images in (train, test) if images.why), "")
        return [*lines, *notes, f"the images have no classes: kNN and linear probes are left out{reason}"]
    lines[0] += f"; train: {train}"
    if "knn" in by_classes and config.k > len(train):
        lines.append(f"k is {len(train)}, the number of training images, for --k {config.k}")
    return [*lines, *notes]


def _map_lines(train: LabelMaps, test: LabelMaps) -> list[str]:
    ground = "no background" if test.background is None else f"background: {test.classes[test.background]}"
    return [
        f"label maps of {train.labels.shape[-1]} px: {len(train)} training images of {train.images.source}, "
        f"{len(test)} test images of {test.images.source}; {len(test.classes)} classes, {ground}",
        *train.notes,
        *test.notes,
    ]
