"""All probes of one network, and how two networks that were asked the same differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from resim.errors import UserError
from resim.probes import intervals, segmentation_scores
from resim.probes.accuracy import Accuracy, accuracy
from resim.probes.config import DENSE, LinearConfig, ProbeConfig
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
from resim.probes.unlabelled import Told, correspondence_probe, health_probe, probe_window

Path = tuple[str, ...]
"""Where a score stands: ("knn", "C5"), ("correspondence", "scale", "P4"), ("retrieval", "10%", "P4")."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number with what it was measured on, and how it was come by."""

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
    told: Told | None = None,
) -> dict[Path, Score]:
    """Measure a network.

    Args:
        network: in evaluation mode.
        train: images whose features and classes the kNN and linear probes know.
        test: images that they are asked about; correspondence and health use some of them.
        config: what is measured; its image size is set.
        labels: training and test images of segmentation and retrieval, with their label maps at that image size.
        told: progress.

    Returns:
        Scores; those that need classes or label maps are left out where the images have none.

    Raises:
        UserError: images that cannot be decoded, or a level that the network does not have.
    """
    size, scores = config.image_size, dict[Path, Score]()
    labelled = train.labels is not None and test.labels is not None
    check_level(network, config, has_classes=labelled)
    if labelled and {"knn", "linear", "linear-sgd"} & set(config.probes):
        bank = _features(network, train, size, "features of training images", told)
        asked = _features(network, test, size, "features of test images", told)
        if "knn" in config.probes:
            scores |= knn_probe(bank, asked, train, test, k=config.k, temperature=config.temperature)
        if "linear" in config.probes:
            if told is not None:
                told("linear probe on cached features", 0, 0)
            scores["linear", config.linear_level] = _linear(bank, asked, train, test, config)
        if "linear-sgd" in config.probes:
            scores["linear-sgd", "C5"] = _linear_sgd(network, asked, train, test, size, config.sgd(), told)
    chosen = test.draw(config.pairs, config.seed)
    if "correspondence" in config.probes:
        found = correspondence_probe(
            network, chosen, size=size, seed=config.seed, radius=config.radius or None, told=told
        )
        details = {"window_px": probe_window(size)}
        for change, levels in found.items():
            for level, value in levels.items():
                scores["correspondence", change, level] = Score(value=value, details=details)
    dense: list[Literal["segmentation", "retrieval"]] = [probe for probe in DENSE if probe in config.probes]
    if dense and labels is not None:
        measured = measure_dense(network, *labels, dense, config.dense, seed=config.seed, told=told)
        scores |= {path: Score(value=value, details=details) for path, (value, details) in measured.items()}
    if "health" in config.probes:
        health = health_probe(network, chosen, size=size, seed=config.seed, told=told)
        scores |= {("health", level): Score(value=value, details={}) for level, value in health.items()}
    return scores


def check_level(network: Network, config: ProbeConfig, *, has_classes: bool = True) -> None:
    """Whether a network has the levels of the linear probe and of the dense probes, before anything is measured.

    Raises:
        UserError: it has not, and which it has.
    """
    levels = [*network.strides, *([GLOBAL] if network.has_head else [])]
    missing = [level for level in config.dense.dense_levels if level not in network.strides]
    if missing and set(DENSE) & set(config.probes):
        raise UserError(f"--dense-levels {missing[0]}: {network.name} has {', '.join(network.strides)}")
    if has_classes and "linear" in config.probes and config.linear_level not in levels:
        raise UserError(f"--linear-level {config.linear_level}: {network.name} has {', '.join(levels)}")


def knn_probe(
    bank: Features, asked: Features, train: ProbeImages, test: ProbeImages, *, k: int, temperature: float
) -> dict[Path, Score]:
    """Weighted kNN on every level, with the k that was used: at most the number of training images."""
    classes, own = _classes(bank, train), _classes(asked, test)
    used = min(k, len(classes))
    scores: dict[Path, Score] = {}
    for level, vectors in bank.vectors.items():
        votes = knn_votes(
            vectors, classes, asked.vectors[level], num_classes=len(train.classes), k=used, temperature=temperature
        )
        details = {"n_train": len(classes), "k": used, "temperature": temperature}
        scores["knn", level] = Score(value=accuracy(votes, own), details=details)
    return scores


def difference(a: Score, b: Score) -> tuple[float, float, float] | None:
    """Accuracy or mIoU of `a` minus that of `b` with its 95 % interval; None if they are not of the same images."""
    x, y = a.value, b.value
    if isinstance(x, Accuracy) and isinstance(y, Accuracy) and len(x.top1) == len(y.top1):
        return intervals.difference(x.top1, y.top1, x.counts)
    if isinstance(x, Correspondence) and isinstance(y, Correspondence) and x.windows.tolist() == y.windows.tolist():
        return intervals.difference(x.correct, y.correct, x.windows)
    if isinstance(x, Segmentation) and isinstance(y, Segmentation):
        return segmentation_scores.difference(x, y)
    return None


def nested(scores: Mapping[Path, Score]) -> dict[str, Any]:
    """Scores as plain data, one dictionary within the other: by probe, change and level."""
    found: dict[str, Any] = {}
    for path, score in scores.items():
        place = found
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = score.to_json()
    return found


def _features(network: Network, images: ProbeImages, size: int, what: str, told: Told | None) -> Features:
    if told is None:
        return pooled_features(network, images, size=size)
    told(what, 0, len(images))
    return pooled_features(network, images, size=size, told=lambda done: told(what, done, len(images)))


def _linear(bank: Features, asked: Features, train: ProbeImages, test: ProbeImages, config: ProbeConfig) -> Score:
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
    return Score(value=accuracy(fit.scores(asked.vectors[level]), _classes(asked, test)), details=details)


def _linear_sgd(
    network: Network, asked: Features, train: ProbeImages, test: ProbeImages, size: int, sgd: LinearConfig,
    told: Told | None,
) -> Score:  # fmt: skip
    what, total = f"linear probe by SGD, {sgd.epochs} epochs", sgd.epochs * len(train)
    if told is not None:
        told(what, 0, total)
    advance = None if told is None else lambda done: told(what, done, total)
    head = train_linear(network, train, sgd, size=size, told=advance)
    details = {
        "n_train": len(train) - len(head.bad),
        "epochs": sgd.epochs,
        "lr": sgd.lr,
        "batch_size": sgd.batch_size,
        "losses": [head.losses[0], head.losses[-1]],
    }
    scores = head.scores(asked.vectors["C5"].to(head.weight.device))
    return Score(value=accuracy(scores, _classes(asked, test)), details=details)


def _classes(features: Features, images: ProbeImages) -> Tensor:
    assert images.labels is not None
    return torch.from_numpy(images.labels[features.kept])
