"""All probes of one network, and the difference between two networks on the same images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from resim.errors import UserError
from resim.probes import intervals, segmentation_scores
from resim.probes.accuracy import Accuracy, accuracy
from resim.probes.config import DENSE, LinearConfig, ProbeConfig, ScorePath
from resim.probes.correspondence import Correspondence
from resim.probes.features import GLOBAL, Features, Network, pooled_features
from resim.probes.health import Health
from resim.probes.knn import knn_votes
from resim.probes.label_maps import LabelMaps
from resim.probes.labels import ProbeImages
from resim.probes.linear import fit_linear
from resim.probes.linear_sgd import train_linear
from resim.probes.segmentation_scores import Segmentation
from resim.probes.segmentation_suite import measure_dense
from resim.probes.unlabelled import ProbeProgress, correspondence_probe, health_probe, probe_window


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score with the settings and the state of its probe."""

    value: Accuracy | Correspondence | Health | Segmentation
    details: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return self.value.to_json() | self.details


def probe_network(
    network: Network,
    train: ProbeImages,
    test: ProbeImages,
    config: ProbeConfig,
    *,
    labels: tuple[LabelMaps, LabelMaps] | None = None,
    progress: ProbeProgress | None = None,
) -> dict[ScorePath, Score]:
    """Measure a network.

    Args:
        network: in evaluation mode.
        train: training images of the kNN and linear probes.
        test: test images; correspondence and health use a sample of them.
        config: the probes and their settings; its image size must be set.
        labels: training and test images of segmentation and retrieval, with label maps at this image size.
        progress: called as the measurement proceeds.

    Returns:
        The scores; probes that need classes or label maps are omitted if the images have none.

    Raises:
        UserError: no image can be decoded, or the network does not have a level.
    """
    size, scores = config.image_size, dict[ScorePath, Score]()
    labelled = train.labels is not None and test.labels is not None
    check_level(network, config, has_classes=labelled)
    if labelled and {"knn", "linear", "linear-sgd"} & set(config.probes):
        bank = _features(network, train, size, "features of training images", progress)
        queries = _features(network, test, size, "features of test images", progress)
        if "knn" in config.probes:
            scores |= knn_probe(bank, queries, train, test, k=config.k, temperature=config.temperature)
        if "linear" in config.probes:
            if progress is not None:
                progress("linear probe on cached features", 0, 0)
            scores["linear", config.linear_level] = _linear(bank, queries, train, test, config)
        if "linear-sgd" in config.probes:
            scores["linear-sgd", "C5"] = _linear_sgd(network, queries, train, test, size, config.sgd(), progress)
    sample = test.sample(config.pairs, config.seed)
    if "correspondence" in config.probes:
        changes = correspondence_probe(
            network, sample, size=size, seed=config.seed, radius=config.radius or None, progress=progress
        )
        details = {"window_px": probe_window(size)}
        for change, levels in changes.items():
            for level, value in levels.items():
                scores["correspondence", change, level] = Score(value=value, details=details)
    dense: list[Literal["segmentation", "retrieval"]] = [probe for probe in DENSE if probe in config.probes]
    if dense and labels is not None:
        measured = measure_dense(network, *labels, dense, config.dense, seed=config.seed, progress=progress)
        scores |= {path: Score(value=value, details=details) for path, (value, details) in measured.items()}
    if "health" in config.probes:
        health = health_probe(network, sample, size=size, seed=config.seed, progress=progress)
        scores |= {("health", level): Score(value=value, details={}) for level, value in health.items()}
    return scores


def check_level(network: Network, config: ProbeConfig, *, has_classes: bool = True) -> None:
    """Check that a network has the levels of the linear probe and of the dense probes.

    Raises:
        UserError: it does not have one of them.
    """
    levels = [*network.strides, *([GLOBAL] if network.has_head else [])]
    missing = [level for level in config.dense.dense_levels if level not in network.strides]
    if missing and set(DENSE) & set(config.probes):
        raise UserError(f"--dense-levels {missing[0]}: {network.name} has the levels {', '.join(network.strides)}")
    if has_classes and "linear" in config.probes and config.linear_level not in levels:
        raise UserError(f"--linear-level {config.linear_level}: {network.name} has the levels {', '.join(levels)}")


def knn_probe(
    bank: Features, queries: Features, train: ProbeImages, test: ProbeImages, *, k: int, temperature: float
) -> dict[ScorePath, Score]:
    """Measure weighted kNN on every level, with k limited to the number of training images."""
    train_classes, test_classes = _classes(bank, train), _classes(queries, test)
    k = min(k, len(train_classes))
    scores: dict[ScorePath, Score] = {}
    for level, vectors in bank.vectors.items():
        votes = knn_votes(
            vectors,
            train_classes,
            queries.vectors[level],
            num_classes=len(train.classes),
            k=k,
            temperature=temperature,
        )
        details = {"n_train": len(train_classes), "k": k, "temperature": temperature}
        scores["knn", level] = Score(value=accuracy(votes, test_classes), details=details)
    return scores


def difference(a: Score, b: Score) -> tuple[float, float, float] | None:
    """Accuracy or mIoU of `a` minus that of `b` with its 95 % interval; None if their images differ."""
    x, y = a.value, b.value
    if isinstance(x, Accuracy) and isinstance(y, Accuracy) and len(x.top1) == len(y.top1):
        return intervals.difference(x.top1, y.top1, x.counts)
    if isinstance(x, Correspondence) and isinstance(y, Correspondence) and x.windows.tolist() == y.windows.tolist():
        return intervals.difference(x.correct, y.correct, x.windows)
    if isinstance(x, Segmentation) and isinstance(y, Segmentation):
        return segmentation_scores.difference(x, y)
    return None


def nested(scores: Mapping[ScorePath, Score]) -> dict[str, Any]:
    """Scores as nested dictionaries of plain data: by probe, change and level."""
    result: dict[str, Any] = {}
    for path, score in scores.items():
        parent = result
        for part in path[:-1]:
            parent = parent.setdefault(part, {})
        parent[path[-1]] = score.to_json()
    return result


def _features(network: Network, images: ProbeImages, size: int, what: str, progress: ProbeProgress | None) -> Features:
    if progress is None:
        return pooled_features(network, images, size=size)
    progress(what, 0, len(images))
    return pooled_features(network, images, size=size, progress=lambda count: progress(what, count, len(images)))


def _linear(bank: Features, queries: Features, train: ProbeImages, test: ProbeImages, config: ProbeConfig) -> Score:
    level = config.linear_level
    try:
        fit = fit_linear(bank.vectors[level], _classes(bank, train), num_classes=len(train.classes), seed=config.seed)
    except ValueError as error:
        raise UserError(f"{train.source}, linear probe: {error}") from None
    details = {
        "n_train": len(bank.kept),
        "strength": fit.strength,
        "gradient": fit.gradient,
        "converged": fit.converged,
        "evaluations": fit.evaluations,
        "held_out": [list(pair) for pair in fit.held_out],
    }
    return Score(value=accuracy(fit.scores(queries.vectors[level]), _classes(queries, test)), details=details)


def _linear_sgd(
    network: Network, queries: Features, train: ProbeImages, test: ProbeImages, size: int, sgd: LinearConfig,
    progress: ProbeProgress | None,
) -> Score:  # fmt: skip
    what, total = f"linear probe by SGD, {sgd.epochs} epochs", sgd.epochs * len(train)
    if progress is not None:
        progress(what, 0, total)
    advance = None if progress is None else lambda count: progress(what, count, total)
    head = train_linear(network, train, sgd, size=size, progress=advance)
    details = {
        "n_train": len(train) - len(head.bad),
        "epochs": sgd.epochs,
        "lr": sgd.lr,
        "batch_size": sgd.batch_size,
        "losses": [head.losses[0], head.losses[-1]],
    }
    scores = head.scores(queries.vectors["C5"].to(head.weight.device))
    return Score(value=accuracy(scores, _classes(queries, test)), details=details)


def _classes(features: Features, images: ProbeImages) -> Tensor:
    assert images.labels is not None
    return torch.from_numpy(images.labels[features.kept])
