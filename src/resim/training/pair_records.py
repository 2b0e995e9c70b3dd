"""What a batch of view pairs was made of, as plain data, and the batch that is made of it again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from resim.views.config import ViewsConfig
from resim.views.crops import Draw, cut_views
from resim.views.decode import Photo
from resim.views.loader import PairBatch


def records_of(batch: PairBatch, paths: Sequence[str]) -> Callable[[], list[dict[str, Any]]]:
    """A function that describes each image: path, shared flip, and crop, colours and blur of both views.

    It keeps the draws of the batch and none of its pixels.
    """
    parts = (batch.indices, batch.flips, *batch.draws)

    def describe() -> list[dict[str, Any]]:
        return [
            {"path": paths[index], "flip": flip, "query": dataclasses.asdict(query), "key": dataclasses.asdict(key)}
            for index, flip, query, key in zip(*parts, strict=True)
        ]

    return describe


def rebuild_pairs(images: Sequence[dict[str, Any]], config: ViewsConfig) -> PairBatch:
    """The batch of the images in a file of `nonfinite/`: the same pixels and draws.

    Args:
        images: entries as those of `records_of`, or as JSON has stored them.
        config: the views of the run's recipe.
    """
    draws: tuple[list[Draw], list[Draw]] = ([_draw(image["query"]) for image in images], [])
    draws[1].extend(_draw(image["key"]) for image in images)
    pixels = [
        cut_views(Photo(image["path"]), image["flip"], pair, config.image_size)
        for image, pair in zip(images, zip(*draws, strict=True), strict=True)
    ]
    return PairBatch(
        pieces=(torch.from_numpy(np.stack(pixels, axis=1)),),
        draws=draws,
        flips=[image["flip"] for image in images],
        indices=list(range(len(images))),
        bad=[],
    )


def _draw(stored: dict[str, Any]) -> Draw:
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()
    }
    return Draw(**values)
