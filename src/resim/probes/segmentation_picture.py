"""The sheet of `resim probe`: test images, their labels, and the predictions of each network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from resim.draw.segmentation_sheet import Column, Comparison, segmentation_sheet
from resim.draw.sheet import write_png
from resim.probes.config import ScorePath
from resim.probes.dense import ALL, whole_view
from resim.probes.label_maps import LabelMaps
from resim.probes.segmentation_scores import Segmentation
from resim.probes.segmentation_suite import example_images
from resim.probes.suite import Score
from resim.views.decode import BadImageError


def write_sheet(
    out: Path, results: Mapping[str, Mapping[ScorePath, Score]], test: LabelMaps, reference: str
) -> Path | None:
    """Draw some test images with their labels and the predictions of each network, one block for each probe.

    Linear segmentation is shown on all levels together. Retrieval is shown with the largest memory, on the level on
    which the reference is best, among the levels that all networks have.

    Returns:
        `out`; None if there is nothing to show.
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
        if probe[0] == "segmentation" or probe == _largest_retrieval(results[reference]):
            path = _shown_path(probe, results, reference)
            if path is not None:
                comparisons.append(_comparison(path, results))
    if not comparisons or not pixels:
        return None
    sheet = segmentation_sheet(pixels, truth, names, comparisons, classes=test.classes, background=test.background)
    write_png(out, sheet)
    return out


def _largest_retrieval(scores: Mapping[ScorePath, Score]) -> ScorePath | None:
    """The retrieval with the largest memory."""
    paths = {float(score.details["share"]): path[:-1] for path, score in scores.items() if path[0] == "retrieval"}
    return paths[max(paths)] if paths else None


def _shown_path(probe: ScorePath, results: Mapping[str, Mapping[ScorePath, Score]], reference: str) -> ScorePath | None:
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
    level = "all levels" if path[-1] == ALL else path[-1]
    title = (
        f"Linear segmentation on {level}"
        if path[0] == "segmentation"
        else f"Dense retrieval on {level}, with {path[1]} of the training images in memory"
    )
    return Comparison(title=title, columns=columns)


def _value(score: Score) -> Segmentation:
    assert isinstance(score.value, Segmentation)
    return score.value
