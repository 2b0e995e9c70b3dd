"""In-context segmentation: a pixel's class is read off the most similar cells of labelled images, nothing is trained.

Shapes: M cells in memory, Q query cells, C channels, K classes, N images of S x S px.

Source: Balažević et al., "Towards In-context Scene Understanding", NeurIPS 2023, arXiv 2306.01667, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from resim.probes.config import RETRIEVAL_CELLS, RETRIEVAL_NEIGHBOURS, RETRIEVAL_SHARES, RETRIEVAL_TEMPERATURE
from resim.probes.dense import batches, gather_cells, level_maps, level_shape, sample_cells, upsample
from resim.probes.segmentation_scores import Predicted, confusions
from resim.probes.unlabelled import Told

_SIMILARITIES_AT_ONCE = 2**24


@torch.no_grad()
def retrieve(
    keys: Tensor,
    values: Tensor,
    queries: Tensor,
    *,
    k: int = RETRIEVAL_NEIGHBOURS,
    temperature: float = RETRIEVAL_TEMPERATURE,
) -> Tensor:
    """Cross-attention of query cells to their k most similar cells in memory.

    Args:
        keys: (M, C) L2-normalised features of the memory.
        values: (M, K) label distributions.
        queries: (Q, C) L2-normalised features.
        k: neighbours; of fewer cells in memory, all.
        temperature: of the softmax over the neighbours' cosine similarities.

    Returns:
        (Q, K): softmax(similarity / temperature) over the neighbours, times their label distributions.

    Raises:
        ValueError: an empty memory, k below 1, or a temperature that is not positive.
    """
    if not len(keys) or k < 1:
        raise ValueError(f"{k} neighbours of {len(keys)} cells: at least one of each is needed")
    if not temperature > 0:
        raise ValueError(f"temperature {temperature}: must be above 0")
    answers = []
    for part in queries.split(max(1, _SIMILARITIES_AT_ONCE // len(keys))):
        nearest, index = (part @ keys.T).topk(min(k, len(keys)), dim=1)
        weights = (nearest / temperature).softmax(dim=1)
        answers.append(torch.einsum("qk,qkc->qc", weights, values[index]))
    return torch.cat(answers)


def memory_images(num_images: int, share: float, seed: int) -> list[int]:
    """Which images the memory is made of: the same for the same seed, smaller shares within larger ones."""
    count = max(1, round(share * num_images))
    return sorted(np.random.default_rng([13, seed]).permutation(num_images)[:count].tolist())


def retrieval_segmentation(
    train: Mapping[str, Tensor],
    train_labels: Tensor,
    test: Mapping[str, Tensor],
    test_labels: Tensor,
    *,
    num_classes: int,
    levels: Sequence[str] = (),
    shares: Sequence[float] = RETRIEVAL_SHARES,
    k: int = RETRIEVAL_NEIGHBOURS,
    temperature: float = RETRIEVAL_TEMPERATURE,
    most_cells: int = RETRIEVAL_CELLS,
    seed: int = 0,
    examples: Sequence[int] = (),
    device: torch.device | str = "cpu",
    told: Told | None = None,
) -> dict[tuple[float, str], Predicted]:
    """Segment test images by their cells' nearest neighbours among cells of labelled images.

    Args:
        train: maps of the images that the memory may hold by level, (N, C, H, W) of any floating dtype.
        train_labels: (N, S, S) integers: classes, or VOID (-1).
        test: maps of the test images.
        test_labels: of the test images.
        num_classes: K.
        levels: of the maps; empty: all of them.
        shares: of the N images, each a memory of its own.
        k: neighbours.
        temperature: of the cross-attention.
        most_cells: cells in a memory, the same number of each image, chosen at random.
        seed: of the images and the cells in memory.
        examples: test images whose predicted maps are kept.
        device: where to compute.
        told: progress.

    Returns:
        By share and level, per-image confusion matrices.

    Raises:
        ValueError: a share that is not in (0, 1], or a memory without a labelled cell.
    """
    wrong = next((share for share in shares if not 0 < share <= 1), None)
    if wrong is not None:
        raise ValueError(f"share {wrong}: must be above 0 and at most 1")
    size, results = test_labels.shape[-1], {}
    for level in levels or tuple(train):
        _, height, width = level_shape(train, level)
        memories = {}
        for share in shares:
            images = memory_images(len(train_labels), share, seed)
            cells = sample_cells(train_labels, num_classes, (height, width), most=most_cells, seed=seed, images=images)
            if not len(cells):
                raise ValueError(f"the {len(images)} images in memory have no labelled cell")
            keys = F.normalize(gather_cells(train, level, cells, device), dim=1)
            memories[share] = keys, cells.shares.to(keys), len(images)
        confusion: dict[float, list[np.ndarray]] = {share: [] for share in shares}
        shown: dict[float, list[np.ndarray]] = {share: [] for share in shares}
        what = f"dense retrieval, {level}"
        if told is not None:
            told(what, 0, len(test_labels))
        for rows in batches(len(test_labels)):
            maps = level_maps(test, level, rows, device)
            queries = F.normalize(maps.flatten(2).transpose(1, 2).flatten(0, 1), dim=1)
            for share, (keys, values, _) in memories.items():
                answers = retrieve(keys, values, queries, k=k, temperature=temperature)
                scores = answers.view(len(maps), height, width, num_classes).permute(0, 3, 1, 2)
                predicted = upsample(scores, size).argmax(dim=1).cpu()
                confusion[share].append(confusions(test_labels[rows], predicted, num_classes))
                shown[share] += [predicted[i - rows.start].numpy() for i in sorted(examples) if i in _range(rows)]
            if told is not None:
                told(what, rows.stop - rows.start, len(test_labels))
        for share, (keys, _, num_images) in memories.items():
            results[share, level] = Predicted(
                confusion=np.concatenate(confusion[share]),
                examples=_in_order(shown[share], examples, size),
                details={
                    "share": share, "n_train": num_images, "cells": len(keys), "grid": [height, width],
                    "k": min(k, len(keys)), "temperature": temperature,
                },
            )  # fmt: skip
    return results


def _range(rows: slice) -> range:
    return range(rows.start, rows.stop)


def _in_order(shown: Sequence[np.ndarray], examples: Sequence[int], size: int) -> np.ndarray:
    """(E, S, S) int16 in the order in which they were asked for; `shown` is in ascending order of the images."""
    if not examples:
        return np.empty((0, size, size), dtype=np.int16)
    place = np.argsort(np.argsort(examples))
    return np.stack(shown)[place].astype(np.int16)
