"""The detectors of a study: the same Faster R-CNN from every pre-trained backbone and from the untrained one.

A regime states which part is trained, on which fraction of the labelled images. Pre-training and detector have the same
seed.
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

REPLICATES = 300  # bootstrap samples of the test images for an interval of AP
MEASURES = ("AP", "AP50")


@dataclass(frozen=True)
class Regime:
    """The part of a detector that is frozen, and the fraction of the images on which the rest is trained."""

    freeze: Literal["none", "backbone", "backbone+fpn"]
    fraction: float  # of the labelled images


REGIMES = {
    "frozen": Regime("backbone", 1.0),
    "frozen+fpn": Regime("backbone+fpn", 1.0),
    "tuned-1%": Regime("none", 0.01),
    "tuned-10%": Regime("none", 0.1),
    "tuned-100%": Regime("none", 1.0),
}
WITH_FPN = (UNTRAINED, "resim-fpn")  # methods with an FPN, which can be frozen


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Labelled training and test images of the detectors."""

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
    """Read at most `most` labelled images of each set.

    Args:
        train: any data set that `resim detect train` reads.
        test: the same for the test images; None: a fifth of `train` is held out.
        images: folder of the images of `train`, if they are not next to it.
        test_images: folder of the images of `test`, if they are not next to it.
        classes: to keep; empty: all.
        merge: name of the single class into which all classes are merged; empty: they are not merged.
        most: maximum number of images of each set; 0: all.

    Raises:
        UserError: labels cannot be read, or a class does not exist.
    """
    data = read_detection(train, images=images)
    first, second = hold_out(data, 0.2, 0) if test is None else (data, read_detection(test, images=test_images))
    sets = [choose_classes(part, classes, merge) for part in (first, second)]
    first, second = (subset(part, most / len(part)) if 0 < most < len(part) else part for part in sets)
    return Labels(train=first, test=second)


def choose_classes(data: DetectionData, classes: Sequence[str], merge: str = "") -> DetectionData:
    """Keep the objects of some classes, merged into one class if `merge` is its name; all images are kept.

    Raises:
        UserError: a class does not exist.
    """
    unknown = [name for name in classes if name not in data.classes]
    if unknown:
        raise UserError(f"{data.source}: no class {unknown[0]!r}; it has {', '.join(data.classes)}")
    names = tuple(name for name in data.classes if name in classes or not classes)
    labels = {data.classes.index(name) + 1: 1 if merge else label for label, name in enumerate(names, start=1)}
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
    """The detector of a regime: trained by AdamW if the backbone is frozen, otherwise by SGD as published."""
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
) -> None:
    """Train the detectors of a regime from the last checkpoint of every run and from the untrained network.

    Args:
        runs: folders of pre-trainings with this seed, by method.
        out: folder of the study: rows are appended to its results.csv, bootstrap samples of AP written into counts/.
        labels: training and test images.
        size: of the pre-trained networks.
        name: of the regime.
        steps: of each detector.
        seed: of pre-training and detector.

    Raises:
        StoppedError: a signal stopped it.
    """
    probe = f"detector/{name}"
    done = {row.method for row in read_rows(out / "results.csv") if (row.probe, row.seed) == (probe, seed)}
    starts = {UNTRAINED: "random"} | {method: str(folder) for method, folder in runs.items()}
    if REGIMES[name].freeze == "backbone+fpn":
        starts = {method: weights for method, weights in starts.items() if method in WITH_FPN}
    if set(starts) <= done or len(starts) < 2:
        return
    folder = out / "detectors" / f"{name.replace('%', '')}-seed{seed}"
    comparison = compare(
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
    assert comparison is not None  # there is one process, and no --stop-after
    new = [method for method in starts if method not in done]
    append_rows(out / "results.csv", _rows(comparison, new, labels.test, out, probe, seed, pairs_of(out, seed)))
    print(f"trained detectors: {name}, seed {seed}", flush=True)


def pairs_of(out: Path, seed: int) -> dict[str, int]:
    """For each method, the maximum number of view pairs among its rows with this seed."""
    pairs: dict[str, int] = {UNTRAINED: 0}
    for row in read_rows(out / "results.csv"):
        if row.seed == seed:
            pairs[row.method] = max(row.pairs, pairs.get(row.method, 0))
    return pairs


def _rows(
    comparison: Comparison, methods: Iterable[str], test: DetectionData, out: Path, probe: str, seed: int,
    pairs: dict[str, int],
) -> Iterable[Row]:  # fmt: skip
    for method in methods:
        (folder,) = comparison.folders[method]
        classes = match_detections(test, read_results(folder / "results.json"))
        drawn = resample_precision(classes, len(test), replicates=REPLICATES, seed=0)
        plain = average_precision(classes, np.ones(len(test)))
        write_counts(out, f"{method}-seed{seed}-{pairs[method]}", {f"{probe}/box": np.array([plain, *drawn])})
        low, high = np.nanpercentile(drawn, [2.5, 97.5])
        for measure in MEASURES:
            (value,) = comparison.scores[method]["bbox"][measure]
            yield Row(
                method=method, seed=seed, pairs=pairs[method], probe=probe, level="box", measure=measure,
                tune_seed=seed, value=value, num_images=len(test),
                low=float(low) if measure == "AP" else None, high=float(high) if measure == "AP" else None,
            )  # fmt: skip
