"""Linear segmentation and dense retrieval of one network, as scores of the suite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from resim.errors import UserError
from resim.probes import segmentation
from resim.probes.config import DenseConfig
from resim.probes.dense import DenseMaps, dense_maps
from resim.probes.features import Network
from resim.probes.label_maps import VOID, LabelMaps
from resim.probes.retrieval import retrieval_segmentation
from resim.probes.segmentation import linear_segmentation
from resim.probes.segmentation_scores import Predicted, Segmentation
from resim.probes.unlabelled import Told

EXAMPLES = 6  # test images of a picture


Path = tuple[str, ...]


def measure_dense(
    network: Network,
    train: LabelMaps,
    test: LabelMaps,
    probes: Sequence[Literal["segmentation", "retrieval"]],
    config: DenseConfig,
    *,
    seed: int = 0,
    told: Told | None = None,
    with_all: bool = True,
    strengths: tuple[float, ...] = segmentation.STRENGTHS,
) -> dict[Path, tuple[Segmentation, dict[str, Any]]]:
    """Linear segmentation and dense retrieval of a network; the images are encoded once for both.

    Args:
        network: in evaluation mode.
        train: labelled images to learn from.
        test: labelled images to test on, with the same classes.
        probes: which of the two.
        config: how they are measured.
        seed: of cells, memories and the part held out.
        told: progress.
        with_all: whether linear segmentation has "all" among its levels.
        strengths: of linear segmentation's penalty, to choose from.

    Returns:
        ("segmentation", level) and ("retrieval", "10%", level) with the agreement and how it was come by.

    Raises:
        UserError: images that cannot be decoded, maps that take too much memory, or labels of one class alone.
    """
    size = train.labels.shape[-1]
    first, second = (
        dense_maps(network, part.images, size=size, levels=config.dense_levels, memory=config.dense_memory, told=told,
                   what=f"dense features of {name} images")
        for part, name in ((train, "training"), (test, "test"))
    )  # fmt: skip
    labels, asked = train.labels[first.kept], test.labels[second.kept]
    shared = {
        "num_classes": len(train.classes), "seed": seed, "examples": example_rows(test, second),
        "device": network.device, "told": told,
    }  # fmt: skip
    found: dict[Path, Predicted] = {}
    try:
        if "segmentation" in probes:
            by_level = linear_segmentation(
                first.maps, labels, second.maps, asked, most_cells=config.dense_cells, memory=config.dense_memory,
                with_all=with_all, strengths=strengths, **shared,
            )  # fmt: skip
            found |= {("segmentation", level): one for level, one in by_level.items()}
        if "retrieval" in probes:
            by_share = retrieval_segmentation(
                first.maps, labels, second.maps, asked, shares=config.retrieval_shares, k=config.retrieval_k,
                temperature=config.retrieval_temperature, most_cells=config.retrieval_cells, **shared,
            )  # fmt: skip
            order = [(share, level) for share in config.retrieval_shares for level in first.maps]
            found |= {("retrieval", f"{100 * share:g}%", level): by_share[share, level] for share, level in order}
    except ValueError as error:
        raise UserError(f"{train.images.source}: {error}") from None
    left_out = {"images_left_out": len(first.bad) + len(second.bad)}
    return {
        path: (
            Segmentation(
                confusion=one.confusion, classes=train.classes, background=train.background, examples=one.examples
            ),
            one.details | left_out,
        )
        for path, one in found.items()
    }


def example_images(test: LabelMaps) -> list[int]:
    """Test images for a picture: of those with two classes or more, some that are spread evenly over the set."""
    mixed = [i for i, labels in enumerate(test.labels) if len(labels[labels != VOID].unique()) > 1]
    chosen = mixed or list(range(len(test)))
    count = min(EXAMPLES, len(chosen))
    return [chosen[round(place)] for place in np.linspace(0, len(chosen) - 1, count)]


def example_rows(test: LabelMaps, maps: DenseMaps) -> list[int]:
    """The rows of the maps that belong to the images of a picture."""
    row = {int(image): place for place, image in enumerate(maps.kept)}
    return [row[image] for image in example_images(test) if image in row]
