"""Linear segmentation and dense retrieval of one network, as scores of the suite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from resim.errors import UserError
from resim.probes import segmentation
from resim.probes.config import DenseConfig, ScorePath
from resim.probes.dense import DenseMaps, dense_maps
from resim.probes.features import Network
from resim.probes.label_maps import VOID, LabelMaps
from resim.probes.retrieval import retrieval_segmentation
from resim.probes.segmentation import linear_segmentation
from resim.probes.segmentation_scores import Predictions, Segmentation
from resim.probes.unlabelled import ProbeProgress

EXAMPLES = 6  # test images of the sheet


def measure_dense(
    network: Network,
    train: LabelMaps,
    test: LabelMaps,
    probes: Sequence[Literal["segmentation", "retrieval"]],
    config: DenseConfig,
    *,
    seed: int = 0,
    progress: ProbeProgress | None = None,
    with_all: bool = True,
    strengths: tuple[float, ...] = segmentation.STRENGTHS,
) -> dict[ScorePath, tuple[Segmentation, dict[str, Any]]]:
    """Measure linear segmentation and dense retrieval; the images are encoded once for both.

    Args:
        network: in evaluation mode.
        train: labelled training images.
        test: labelled test images, with the same classes.
        probes: to measure.
        config: settings of the probes.
        seed: of cells, memories and the held-out part.
        progress: called as the measurement proceeds.
        with_all: whether linear segmentation also measures the level "all".
        strengths: of the penalty of linear segmentation, to choose from.

    Returns:
        By ("segmentation", level) and ("retrieval", "10%", level), the score and the details for probe.json.

    Raises:
        UserError: no image can be decoded, the maps take too much memory, or there are too few labels.
    """
    size = train.labels.shape[-1]
    train_maps, test_maps = (
        dense_maps(network, part.images, size=size, levels=config.dense_levels, memory=config.dense_memory,
                   progress=progress, what=f"dense features of {name} images")
        for part, name in ((train, "training"), (test, "test"))
    )  # fmt: skip
    train_labels, test_labels = train.labels[train_maps.kept], test.labels[test_maps.kept]
    data = train_maps.maps, train_labels, test_maps.maps, test_labels
    shared = {
        "num_classes": len(train.classes), "seed": seed, "examples": example_rows(test, test_maps),
        "device": network.device, "progress": progress,
    }  # fmt: skip
    predictions: dict[ScorePath, Predictions] = {}
    try:
        if "segmentation" in probes:
            by_level = linear_segmentation(
                *data, most_cells=config.dense_cells, memory=config.dense_memory, with_all=with_all,
                strengths=strengths, **shared,
            )  # fmt: skip
            predictions |= {("segmentation", level): one for level, one in by_level.items()}
        if "retrieval" in probes:
            by_share = retrieval_segmentation(
                *data, shares=config.retrieval_shares, k=config.retrieval_k,
                temperature=config.retrieval_temperature, most_cells=config.retrieval_cells, **shared,
            )  # fmt: skip
            order = [(share, level) for share in config.retrieval_shares for level in train_maps.maps]
            predictions |= {("retrieval", f"{100 * share:g}%", level): by_share[share, level] for share, level in order}
    except ValueError as error:
        raise UserError(f"{train.images.source}: {error}") from None
    omitted = {"images_left_out": len(train_maps.bad) + len(test_maps.bad)}
    return {
        path: (
            Segmentation(
                confusion=one.confusion, classes=train.classes, background=train.background, examples=one.examples
            ),
            one.details | omitted,
        )
        for path, one in predictions.items()
    }


def example_images(test: LabelMaps) -> list[int]:
    """Indices of the test images of the sheet: evenly spaced among those with two classes or more."""
    mixed = [i for i, labels in enumerate(test.labels) if len(labels[labels != VOID].unique()) > 1]
    chosen = mixed or list(range(len(test)))
    count = min(EXAMPLES, len(chosen))
    return [chosen[round(position)] for position in np.linspace(0, len(chosen) - 1, count)]


def example_rows(test: LabelMaps, maps: DenseMaps) -> list[int]:
    """The rows of the maps that belong to the images of the sheet."""
    row_of_image = {int(image): row for row, image in enumerate(maps.kept)}
    return [row_of_image[image] for image in example_images(test) if image in row_of_image]
