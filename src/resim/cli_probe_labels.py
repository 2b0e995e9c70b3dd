"""What `resim probe` reads and writes for segmentation and retrieval: label maps, and the picture of predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from resim.errors import UserError
from resim.pictures.segmentation_sheet import Column, Comparison, segmentation_sheet
from resim.probes.config import LabelOptions
from resim.probes.dense import ALL, whole_view
from resim.probes.label_maps import LabelMaps
from resim.probes.labelled_images import LabelledImages
from resim.probes.segmentation_labels import read_labelled_sets
from resim.probes.segmentation_scores import Segmentation
from resim.probes.segmentation_suite import example_images
from resim.probes.suite import Path as ScorePath
from resim.probes.suite import Score
from resim.training.checkpoints import write_atomically
from resim.views.decode import BadImageError


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


def write_sheet(
    out: Path, results: Mapping[str, Mapping[ScorePath, Score]], test: LabelMaps, reference: str
) -> Path | None:
    """Draw some test images with their labels and each network's predictions, one block for each probe.

    Linear segmentation is shown on all levels together; retrieval from the largest share on the level, of those that
    all networks have, on which the reference does best.

    Returns:
        `out`; None: there is nothing to show.
    """
    pixels, truth, names = [], [], []
    size = test.labels.shape[-1]
    for index in example_images(test):
        try:
            pixels.append(whole_view(test.images.open(index), size)[0])
        except BadImageError:
            continue
        truth.append(test.labels[index].numpy())
        names.append(Path(test.images.name(index)).name)
    comparisons = []
    for probe in dict.fromkeys(path[:-1] for path in results[reference] if path[0] in ("segmentation", "retrieval")):
        if probe[0] == "segmentation" or probe == _last_retrieval(results[reference]):
            path = _shown(probe, results, reference)
            if path is not None:
                comparisons.append(_comparison(path, results))
    if not comparisons or not pixels:
        return None
    sheet = segmentation_sheet(pixels, truth, names, comparisons, classes=test.classes, background=test.background)
    write_atomically(out, lambda file: sheet.save(file, format="png"))
    return out


def _last_retrieval(scores: Mapping[ScorePath, Score]) -> ScorePath | None:
    """The retrieval from the largest share."""
    paths = {float(score.details["share"]): path[:-1] for path, score in scores.items() if path[0] == "retrieval"}
    return paths[max(paths)] if paths else None


def _shown(probe: ScorePath, results: Mapping[str, Mapping[ScorePath, Score]], reference: str) -> ScorePath | None:
    common = [path for path in results[reference] if path[:-1] == probe and all(path in s for s in results.values())]
    if (*probe, ALL) in common:
        return (*probe, ALL)
    return max(common, key=lambda path: _value(results[reference][path]).value(), default=None)


def _comparison(path: ScorePath, results: Mapping[str, Mapping[ScorePath, Score]]) -> Comparison:
    columns: list[Column] = []
    for name, scores in results.items():
        value = _value(scores[path])
        assert value.examples is not None
        columns.append(Column(name=name, note=f"mIoU {100 * value.value():.1f} %", maps=list(value.examples)))
    level = "all levels together" if path[-1] == ALL else path[-1]
    title = (
        f"Linear segmentation on {level}"
        if path[0] == "segmentation"
        else f"Dense retrieval from {path[1]} of the memory on {level}"
    )
    return Comparison(title=title, columns=columns)


def _value(score: Score) -> Segmentation:
    assert isinstance(score.value, Segmentation)
    return score.value


def greeting(train: LabelMaps, test: LabelMaps) -> Sequence[str]:
    """What the label maps are, and what was left out of them."""
    ground = "no background" if test.background is None else f"background: {test.classes[test.background]}"
    lines = [
        f"label maps of {train.labels.shape[-1]} px: {len(train)} training images of {train.images.source}, "
        f"{len(test)} test images of {test.images.source}; {len(test.classes)} classes, {ground}"
    ]
    return [*lines, *train.notes, *test.notes]
