"""The frozen probes of a study: all kept checkpoints of all runs, and the untrained network of each seed.

The label maps give classes to whole images too: an image that shows objects of one class alone has that class.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from records import UNTRAINED, Row, append_rows, read_rows, write_counts

from resim.errors import UserError
from resim.exchange.encoders import load_encoder
from resim.model.encoder import Encoder
from resim.model.resim import ReSim
from resim.probes.accuracy import Accuracy
from resim.probes.config import ProbeConfig, ScorePath
from resim.probes.correspondence import Correspondence
from resim.probes.features import Network
from resim.probes.label_maps import VOID, LabelMaps, load_label_maps
from resim.probes.labels import ProbeImages
from resim.probes.segmentation_labels import read_labelled_sets
from resim.probes.segmentation_scores import MEASURES, Segmentation
from resim.probes.suite import Score, probe_network
from resim.runs.checkpoints import load_checkpoint
from resim.runs.config import Recipe

NEIGHBOURS = 20  # of some hundred training images
Part = Literal["maps", "classes"]
PARTS: dict[Part, ProbeConfig] = {
    "maps": ProbeConfig(probes=("correspondence", "health", "segmentation", "retrieval"), pairs=0),
    "classes": ProbeConfig(probes=("knn", "linear"), k=NEIGHBOURS),
}
"""Probes that are measured together."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network to probe."""

    method: str
    seed: int
    pairs: int
    encoder: Encoder
    has_head: bool


def read_labels(
    train: Path, test: Path | None, size: int, *, most: int, classes: Sequence[str]
) -> tuple[LabelMaps, LabelMaps]:
    """Read label maps of at most `most` images of each set, at `size` px; without `test`, hold out a fifth of `train`.

    Raises:
        UserError: labels cannot be read.
    """
    train_images, test_images = (images.sample(most, 0) for images in read_labelled_sets(train, test))
    return load_label_maps(train_images, test_images, size, only=classes)


def classify_images(maps: LabelMaps) -> ProbeImages:
    """The images that show objects of one class alone, with that class; the background is no class."""
    names = tuple(name for index, name in enumerate(maps.classes) if index != maps.background)
    shown = [{int(value) for value in one.unique()} - {VOID, maps.background} for one in maps.labels]
    single = [index for index, values in enumerate(shown) if len(values) == 1]
    classes = [names.index(maps.classes[values.pop()]) for values in shown if len(values) == 1]
    images = dataclasses.replace(maps.images, labels=None, classes=names).take(single)
    return dataclasses.replace(images, labels=np.array(classes, dtype=np.int64))


def _class_sets(labels: tuple[LabelMaps, LabelMaps]) -> tuple[ProbeImages, ProbeImages]:
    """Training and test images with classes.

    Raises:
        UserError: they are too few for a probe.
    """
    train, test = map(classify_images, labels)
    if not len(test) or train.labels is None or len(set(train.labels.tolist())) < 2:
        raise UserError(
            f"no probes of image classes: {len(train)} of {len(labels[0])} training images and {len(test)} of "
            f"{len(labels[1])} test images show objects of one class alone"
        )
    return train, test


def probe_runs(
    runs: Sequence[Path], out: Path, labels: tuple[LabelMaps, LabelMaps], *, seed: int = 0, only_last: bool = False
) -> None:
    """Measure what results.csv has no row of; counts for bootstraps are written into counts/*.npz.

    Args:
        runs: folders of pre-trainings on one data set.
        out: folder of results.csv.
        labels: of the training and the test images.
        seed: of the probes: cells, memories, views.
        only_last: whether to skip the checkpoints before the last.
    """
    table = out / "results.csv"
    done = {(row.method, row.seed, row.pairs, _part(row)) for row in read_rows(table)}
    for run in runs:
        for path in checkpoints_of(run)[-1 if only_last else 0 :]:
            try:
                subjects = _subjects(path)
            except UserError as error:
                append_rows(table, [Row(method=run.name, seed=-1, pairs=-1, probe="read", status=str(error))])
                continue
            for subject, part in itertools.product(subjects, PARTS):
                key = subject.method, subject.seed, subject.pairs, part
                if key not in done:
                    done.add(key)
                    append_rows(table, _probe(subject, part, out, labels, seed))
                    print(f"probed {part}: {subject.method}, seed {subject.seed}, {subject.pairs} pairs", flush=True)


def checkpoints_of(run: Path) -> list[Path]:
    """The kept checkpoints of a run in order, then the last checkpoint."""
    folder = run / "checkpoints"
    return [*sorted(folder.glob("epoch_*.pt")), *([folder / "last.pt"] if (folder / "last.pt").exists() else [])]


def _subjects(path: Path) -> list[Subject]:
    """The network of a checkpoint, and for ReSim-FPN the untrained network of the run."""
    state, loaded = load_checkpoint(path), load_encoder(path)
    recipe = Recipe.from_json(state["recipe"])
    pairs = int(state["step"]) * recipe.optim.batch_size
    trained = Subject(
        method=recipe.name, seed=recipe.optim.seed, pairs=pairs, encoder=loaded.encoder, has_head=loaded.has_head
    )
    if not any(level.from_fpn for level in recipe.model.levels):
        return [trained]
    encoder = ReSim(recipe.model, seed=recipe.optim.seed).query.eval()
    return [Subject(method=UNTRAINED, seed=recipe.optim.seed, pairs=0, encoder=encoder, has_head=True), trained]


def _part(row: Row) -> str:
    """Which of `PARTS` a row belongs to, or its probe if none."""
    probe = row.probe.partition("/")[0]
    return next((part for part, config in PARTS.items() if probe in (part, *config.probes)), probe)


def _probe(subject: Subject, part: Part, out: Path, labels: tuple[LabelMaps, LabelMaps], seed: int) -> list[Row]:
    """Measure the probes of a part and return their rows."""
    name = f"{subject.method}-seed{subject.seed}-{subject.pairs}"
    network = Network(name=name, encoder=subject.encoder, has_head=subject.has_head, precision="float32")
    config = dataclasses.replace(PARTS[part], image_size=labels[0].labels.shape[-1], seed=seed)
    base: dict[str, Any] = {"method": subject.method, "seed": subject.seed, "pairs": subject.pairs}
    try:
        if part == "classes":
            scores = probe_network(network, *_class_sets(labels), config)
        else:
            scores = probe_network(network, labels[0].images, labels[1].images, config, labels=labels)
    except (UserError, ValueError) as error:
        return [Row(**base, probe=part, status=str(error))]
    write_counts(out, name, _counts(scores))
    return [row for path, score in scores.items() for row in _rows(base, path, score)]


def _rows(base: Mapping[str, Any], path: ScorePath, score: Score) -> list[Row]:
    about: dict[str, Any] = dict(base) | {"probe": "/".join(path[:-1]), "level": path[-1]}
    value = score.value
    if isinstance(value, Segmentation):
        rows = []
        for measure in MEASURES:
            low, high = value.interval(measure)
            rows.append(
                Row(**about, measure=measure, value=value.value(measure), low=low, high=high,
                    num_images=len(value.confusion))
            )  # fmt: skip
        return rows
    if isinstance(value, Correspondence):
        low, high = value.interval()
        return [
            Row(**about, measure="accuracy", value=value.accuracy, low=low, high=high, num_images=len(value.windows))
        ]
    if isinstance(value, Accuracy):
        low, high = value.interval()
        return [Row(**about, measure="accuracy", value=value.share, low=low, high=high, num_images=len(value.top1))]
    return [Row(**about, measure=name, value=one) for name, one in value.to_json().items() if isinstance(one, float)]


def _counts(scores: Mapping[ScorePath, Score]) -> dict[str, np.ndarray]:
    """Per-image counts by probe and level, from which differences are bootstrapped over images and seeds."""
    arrays: dict[str, np.ndarray] = {}
    for path, score in scores.items():
        value = score.value
        if isinstance(value, Segmentation):
            arrays["/".join(path)] = value.counts.astype(np.int32)
        elif isinstance(value, Correspondence):
            arrays["/".join(path)] = np.stack([value.correct, value.windows], axis=1).astype(np.int32)
        elif isinstance(value, Accuracy):
            arrays["/".join(path)] = np.stack([value.top1, value.counts], axis=1).astype(np.int32)
    return arrays
