"""The detectors of a study: the same Faster R-CNN from every pre-trained backbone and from the untrained one.

A regime says what is trained, and on which share of the labelled images. Pre-training and detector have the same seed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from methods import FPN_WIDTH, Size
from records import UNTRAINED, Row, append_rows, read_rows, write_counts

from resim.datasets.layouts import read_detection
from resim.datasets.records import DetectionData, Record, subset
from resim.datasets.validation_split import hold_out
from resim.detection.compare import Comparison, Start, compare
from resim.detection.config import DetectRecipe, DetectRun
from resim.detection.recipes import probe_frozen, quick
from resim.errors import UserError
from resim.scores.bootstrap import average_precision, match_detections, resample_precision
from resim.scores.results import read_results

REPLICATES = 300  # draws of the test images for an interval of AP
MEASURES = ("AP", "AP50")


@dataclass(frozen=True)
class Regime:
    """How a detector is trained."""

    freeze: Literal["none", "backbone", "backbone+fpn"]
    fraction: float  # of the labelled images


REGIMES = {
    "frozen": Regime("backbone", 1.0),
    "frozen+fpn": Regime("backbone+fpn", 1.0),
    "tuned-1%": Regime("none", 0.01),
    "tuned-10%": Regime("none", 0.1),
    "tuned-100%": Regime("none", 1.0),
}
WITH_FPN = (UNTRAINED, "resim-fpn")  # methods whose networks have an FPN to freeze


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Labelled images to train detectors on, and others to test them on."""

    train: DetectionData
    test: DetectionData


def read_detector_labels(
    train: Path,
    test: Path | None,
    images: Path | None,
    test_images: Path | None,
    *,
    classes: Sequence[str],
    merge: str,
    most: int,
) -> Labels:
    """At most `most` labelled images of each set.

    Args:
        train: whatever `resim detect train` reads.
        test: likewise; None: a fifth of `train` is held out.
        images: folder of the images of `train`, where they are not beside it.
        test_images: likewise.
        classes: to keep; empty: all.
        merge: a name: all classes become this one. Empty: they stay apart.
        most: 0: all images.

    Raises:
        UserError: labels that cannot be read, a class that is not there.
    """
    whole = read_detection(train, images=images)
    first, second = hold_out(whole, 0.2, 0) if test is None else (whole, read_detection(test, images=test_images))
    chosen = [choose_classes(data, classes, merge) for data in (first, second)]
    first, second = (subset(data, most / len(data)) if 0 < most < len(data) else data for data in chosen)
    return Labels(train=first, test=second)


def choose_classes(data: DetectionData, classes: Sequence[str], merge: str = "") -> DetectionData:
    """The objects of some classes, all under one name if `merge` is one; every image stays.

    Raises:
        UserError: a class that is not there.
    """
    unknown = [name for name in classes if name not in data.classes]
    if unknown:
        raise UserError(f"{data.source}: no class {unknown[0]!r}; it has {', '.join(data.classes)}")
    names = tuple(name for name in data.classes if name in classes or not classes)
    labels = {data.classes.index(name) + 1: 1 if merge else at for at, name in enumerate(names, start=1)}
    ids = tuple(data.category_ids[data.classes.index(name)] for name in names)
    return dataclasses.replace(
        data,
        records=tuple(_relabelled(record, labels) for record in data.records),
        classes=(merge,) if merge else names,
        category_ids=(1,) if merge else ids,
        keypoint_names=(),
        keypoint_labels=(),
    )


def _relabelled(record: Record, labels: dict[int, int]) -> Record:
    kept = np.flatnonzero(np.isin(record.labels, list(labels)))
    return dataclasses.replace(
        record,
        boxes=record.boxes[kept],
        labels=np.array([labels[int(label)] for label in record.labels[kept]], dtype=np.int64),
        masks=None,
        keypoints=None,
        crowd=record.crowd[kept],
        difficult=record.difficult[kept],
        annotation_ids=record.annotation_ids[kept],
        areas=record.areas[kept],
    )


def detector_recipe(size: Size, regime: Regime, steps: int, seed: int) -> DetectRecipe:
    """The detector of a regime: AdamW where the backbone is frozen, SGD as published where all is trained."""
    base = quick() if regime.freeze == "none" else probe_frozen()
    small = probe_frozen()
    return DetectRecipe(
        name="study",
        detector=dataclasses.replace(
            small.detector, freeze=regime.freeze, backbone=size.backbone, fpn_width=FPN_WIDTH
        ),
        images=small.images if size.image_size < 128 else quick().images,
        tune=dataclasses.replace(
            base.tune, steps=steps, drops=(steps * 4 // 5,), warmup_steps=steps // 10, fraction=regime.fraction,
            seed=seed,
        ),
    )  # fmt: skip


def detect_one(
    runs: dict[str, Path], out: Path, labels: Labels, size: Size, name: str, *, steps: int, seed: int
) -> bool:
    """Train the detectors of a regime from every run's last checkpoint and from nothing; whether all are finished.

    Args:
        runs: folders of pre-trainings with this seed, by method.
        out: folder of the study; rows go to results.csv there, AP under draws of the test images into counts/.
        labels: to train and test on.
        size: what was pre-trained.
        name: of the regime.
        steps: of each detector.
        seed: of pre-training and detector.
    """
    probe = f"detector/{name}"
    done = {row.method for row in read_rows(out / "results.csv") if (row.probe, row.seed) == (probe, seed)}
    starts = {UNTRAINED: "random"} | {method: str(folder) for method, folder in runs.items()}
    if REGIMES[name].freeze == "backbone+fpn":
        starts = {method: weights for method, weights in starts.items() if method in WITH_FPN}
    if set(starts) <= done or len(starts) < 2:
        return True
    folder = out / "detectors" / f"{name.replace('%', '')}-seed{seed}"
    found = compare(
        detector_recipe(size, REGIMES[name], steps, seed),
        DetectRun(eval_images=8),
        labels.train,
        labels.test,
        [Start(name=method, weights=weights) for method, weights in starts.items()],
        [seed],
        folder,
        replicates=1,
        show=False,
    )
    if found is None:
        return False
    new = [method for method in starts if method not in done]
    append_rows(out / "results.csv", _rows(found, new, labels.test, out, probe, seed, pairs_of(out, seed)))
    print(f"trained detectors: {name}, seed {seed}", flush=True)
    return True


def pairs_of(out: Path, seed: int) -> dict[str, int]:
    """The most view pairs with which a row of each method and this seed was measured."""
    pairs: dict[str, int] = {UNTRAINED: 0}
    for row in read_rows(out / "results.csv"):
        if row.seed == seed:
            pairs[row.method] = max(row.pairs, pairs.get(row.method, 0))
    return pairs


def _rows(
    found: Comparison, methods: Iterable[str], test: DetectionData, out: Path, probe: str, seed: int,
    pairs: dict[str, int],
) -> Iterable[Row]:  # fmt: skip
    for method in methods:
        (folder,) = found.folders[method]
        classes = match_detections(test, read_results(folder / "results.json"))
        drawn = resample_precision(classes, len(test), replicates=REPLICATES, seed=0)
        plain = average_precision(classes, np.ones(len(test)))
        write_counts(out, f"{method}-seed{seed}-{pairs[method]}", {f"{probe}/box": np.array([plain, *drawn])})
        low, high = np.nanpercentile(drawn, [2.5, 97.5])
        for measure in MEASURES:
            (value,) = found.scores[method]["bbox"][measure]
            yield Row(
                method=method, seed=seed, pairs=pairs[method], probe=probe, level="box", measure=measure,
                tune_seed=seed, value=value, num_images=len(test),
                low=float(low) if measure == "AP" else None, high=float(high) if measure == "AP" else None,
            )  # fmt: skip
