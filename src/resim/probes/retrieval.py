"""In-context segmentation: pixels take the classes of the most similar cells of labelled images, without training.

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
from resim.probes.segmentation_scores import Predictions, confusions
from resim.probes.unlabelled import ProbeProgress

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
    """Cross-attention of query cells to the k most similar cells in memory.

    Args:
        keys: (M, C) L2-normalised features of the memory.
        values: (M, K) label distributions.
        queries: (Q, C) L2-normalised features.
        k: number of neighbours, at most M.
        temperature: of the softmax over the cosine similarities of the neighbours.

    Returns:
        (Q, K): softmax(similarity / temperature) over the neighbours, times their label distributions.

    Raises:
        ValueError: the memory is empty, k is below 1, or the temperature is not positive.
    """
    if not len(keys) or k < 1:
        raise ValueError(f"{k} neighbours of {len(keys)} cells: at least one of each is needed")
    if not temperature > 0:
        raise ValueError(f"temperature {temperature}: must be above 0")
    predictions = []
    for part in queries.split(max(1, _SIMILARITIES_AT_ONCE // len(keys))):
        nearest, index = (part @ keys.T).topk(min(k, len(keys)), dim=1)
        weights = (nearest / temperature).softmax(dim=1)
        predictions.append(torch.einsum("qk,qkc->qc", weights, values[index]))
    return torch.cat(predictions)


def memory_images(num_images: int, share: float, seed: int) -> list[int]:
    """Sample the images of the memory; for the same seed, smaller memories are subsets of larger ones."""
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
    progress: ProbeProgress | None = None,
) -> dict[tuple[float, str], Predictions]:
    """Segment test images by the nearest neighbours of their cells among the cells of labelled images.

    Args:
        train: maps of the labelled images by level, (N, C, H, W) of any floating dtype.
        train_labels: (N, S, S) integers: classes, or VOID (-1).
        test: maps of the test images.
        test_labels: of the test images.
        num_classes: K.
        levels: of the maps; empty: all of them.
        shares: fractions of the N images in memory; each is measured.
        k: number of neighbours.
        temperature: of the cross-attention.
        most_cells: maximum number of cells in memory, equally many of each image, sampled at random.
        seed: of the images and the cells in memory.
        examples: test images whose predicted maps are kept.
        device: on which to compute.
        progress: reports completed test images.

    Returns:
        By share and level, the confusion matrix of each image.

    Raises:
        ValueError: a share is not in (0, 1], or a memory has no labelled cell.
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
        if progress is not None:
            progress(what, 0, len(test_labels))
        for rows in batches(len(test_labels)):
            maps = level_maps(test, level, rows, device)
            queries = F.normalize(maps.flatten(2).transpose(1, 2).flatten(0, 1), dim=1)
            for share, (keys, values, _) in memories.items():
                scores = retrieve(keys, values, queries, k=k, temperature=temperature)
                scores = scores.view(len(maps), height, width, num_classes).permute(0, 3, 1, 2)
                predicted = upsample(scores, size).argmax(dim=1).cpu()
                confusion[share].append(confusions(test_labels[rows], predicted, num_classes))
                batch = range(rows.start, rows.stop)
                shown[share] += [predicted[i - rows.start].numpy() for i in sorted(examples) if i in batch]
            if progress is not None:
                progress(what, rows.stop - rows.start, len(test_labels))
        for share, (keys, _, num_images) in memories.items():
            results[share, level] = Predictions(
                confusion=np.concatenate(confusion[share]),
                examples=_in_order(shown[share], examples, size),
                details={
                    "share": share, "n_train": num_images, "cells": len(keys), "grid": [height, width],
                    "k": min(k, len(keys)), "temperature": temperature,
                },
            )  # fmt: skip
    return results


def _in_order(shown: Sequence[np.ndarray], examples: Sequence[int], size: int) -> np.ndarray:
    """Maps (E, S, S) int16 in the order of `examples`; `shown` is in ascending order of the images."""
    if not examples:
        return np.empty((0, size, size), dtype=np.int16)
    rank = np.argsort(np.argsort(examples))
    return np.stack(shown)[rank].astype(np.int16)
