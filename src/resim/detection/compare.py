"""One protocol from several initialisations and with several seeds: scores, differences, and their intervals."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from resim.counts import counted
from resim.datasets.records import DetectionData
from resim.detection.bad_images import without_remembered
from resim.detection.comparison_verdict import comparison_verdict
from resim.detection.config import DetectorConfig, DetectRecipe, DetectRun
from resim.detection.evaluate import read_scores
from resim.detection.freeze import freeze_words
from resim.detection.init import has_fpn, resolve
from resim.detection.train import DetectResult, train_detector
from resim.distributed.processes import start_processes
from resim.errors import StoppedError, UserError
from resim.exchange.sources import TORCHVISION, is_untrained, untrained_model
from resim.exchange.weights import read_weights
from resim.runs.bars import Watch
from resim.runs.checkpoints import write_atomically
from resim.runs.provenance import describe_run
from resim.scores.bootstrap import average_precision, match_detections, paired_interval, resample_precision
from resim.scores.results import read_results
from resim.signals import catch_termination


@dataclass(frozen=True, kw_only=True)
class Start:
    """Weights to begin with, under a short name."""

    name: str
    weights: str
    """Whatever `read_weights` reads, or `random`."""

    @staticmethod
    def parse(text: str) -> Start:
        """`NAME=PATH`, or a path, whose run's folder gives the name."""
        name, equals, path = text.partition("=")
        if equals and name and path and not Path(text).exists():
            return Start(name=name, weights=path)
        if not Path(text).exists() and (is_untrained(text) or text.startswith(f"{TORCHVISION}:")):
            return Start(name=text.replace(":", "-"), weights=text)
        parts = [part for part in Path(text).with_suffix("").parts if part not in ("checkpoints", "last", "/", "..")]
        return Start(name=parts[-1] if parts else text, weights=text)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Box AP of one initialisation minus another's, as a share; the interval of 95 % is over images and seeds."""

    first: str
    second: str
    value: float
    low: float
    high: float

    @property
    def is_sure(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The result of `compare`.

    Attributes:
        names: of the initialisations.
        seeds: of the runs of each.
        scores: by name, kind and score's name the last evaluation's values, one a seed; NaN where there is no object.
        differences: of box AP, for every pair of names.
        folders: of the runs, by name, one a seed.
        frozen: what `--freeze` fixed in all runs, in words; empty: nothing.
        inits: the weights to begin with, by name.
    """

    names: tuple[str, ...]
    seeds: tuple[int, ...]
    scores: dict[str, dict[str, dict[str, list[float]]]]
    differences: tuple[Difference, ...]
    folders: dict[str, list[Path]]
    frozen: str = ""
    inits: dict[str, str] = field(default_factory=dict)


def compare(
    recipe: DetectRecipe,
    run: DetectRun,
    data: DetectionData,
    val: DetectionData,
    starts: Sequence[Start | str],
    seeds: Sequence[int],
    out: Path,
    *,
    replicates: int = 300,
    show: bool = True,
    watch: Watch | None = None,
) -> Comparison | None:
    """Fine-tune from every initialisation with every seed, and compare.

    Each run has its folder in `out`; a finished run is kept, a stopped one is resumed. All detectors
    have the same architecture, that of the first weights where the recipe leaves it open.

    Args:
        recipe: of every run; its seed is replaced.
        run: where and how; its folder is replaced.
        data: to train on.
        val: to evaluate on.
        starts: initialisations; of a text, `NAME=WEIGHTS` or `WEIGHTS`, as `Start.parse`.
        seeds: of the new weights, the order of the images and everything sampled.
        out: folder of the comparison.
        replicates: resamplings of the images for the intervals.
        show: print progress.
        watch: called with the steps done and all steps, of all runs together.

    Returns:
        Scores from 0 to 1 and differences of box AP; None where `run.stop_after` ended a run before its end (the same
        call goes on), and on processes but the first.

    Raises:
        StoppedError: a signal stopped it; the same call goes on.
        UserError: names that are there twice, weights of different architectures, or what `train_detector` raises.
    """
    starts = [Start.parse(start) if isinstance(start, str) else start for start in starts]
    _check(starts, seeds)
    recipe = dataclasses.replace(recipe, detector=_architecture(recipe.detector, starts))
    folders: dict[str, list[Path]] = {start.name: [] for start in starts}
    with start_processes(run.device, timeout_minutes=run.timeout_minutes) as processes, catch_termination() as signals:
        for number, (seed, start) in enumerate(itertools.product(seeds, starts)):
            folder = out / f"{start.name}-seed{seed}"
            folders[start.name].append(folder)
            seeded = dataclasses.replace(recipe, tune=dataclasses.replace(recipe.tune, seed=seed))
            settings = dataclasses.replace(run, out=folder, resume=(folder / "config.json").exists())
            if show and processes.first:
                print(f"\n{start.name}, seed {seed}: {folder}", flush=True)
            watch_run = None if watch is None else _shifted(watch, number, len(seeds) * len(starts))
            result = train_detector(seeded, settings, data, val, init=start.weights, show=show, watch=watch_run)
            if result.finished and not processes.agree(bool(signals))[0]:  # a signal in an evaluation, or between runs
                continue
            state = _state(number, len(seeds) * len(starts), result)
            if result.finished or result.stopped:
                raise StoppedError(f"stopped: {state}")
            if show and processes.first:
                print(f"{state}; the same command goes on")
            return None
        if not processes.first:
            return None
    comparison = Comparison(
        names=tuple(folders),
        seeds=tuple(seeds),
        scores={name: _scores(runs) for name, runs in folders.items()},
        differences=_differences(folders, val, replicates, show=show),
        folders=folders,
        frozen=freeze_words(recipe.detector),
        inits={start.name: start.weights for start in starts},
    )
    content = json.dumps(to_json(comparison, recipe) | describe_run(), indent=2) + "\n"
    write_atomically(out / "compare.json", lambda file: file.write(content.encode()))
    return comparison


def _state(number: int, runs: int, result: DetectResult) -> str:
    """Which runs are finished, and what is saved of the one that is not; `number` counts from 0."""
    finished = f"{number + result.finished} of {counted(runs, 'run')} finished"
    return finished if result.finished else f"{finished}, {result.out} saved after step {result.step}"


def _shifted(watch: Watch, number: int, runs: int) -> Watch:
    """The function that watches run `number` of `runs` runs of the same length."""
    return lambda done, steps: watch(number * steps + done, runs * steps)


def _check(starts: Sequence[Start], seeds: Sequence[int]) -> None:
    names = [start.name for start in starts]
    if not starts or not seeds:
        raise UserError("a comparison needs at least one initialisation and one seed")
    if len(set(names)) < len(names):
        raise UserError(f"initialisations {', '.join(names)}: two have the same name; write NAME=PATH")
    if any(not name or "/" in name or name.startswith(".") for name in names):
        raise UserError(f"initialisations {', '.join(names)}: a name cannot be empty, hold a / or begin with a dot")
    invalid = next((seed for seed in seeds if not 0 <= seed < 2**63), None)
    if invalid is not None:
        raise UserError(f"--seeds {invalid}: must be at least 0 and below 2**63")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {' '.join(map(str, seeds))}: one is there twice")


def _architecture(config: DetectorConfig, starts: Sequence[Start]) -> DetectorConfig:
    """The recipe's detector with what it leaves open, which must be the same for all weights."""
    files = [read_weights(start.weights) for start in starts if not is_untrained(start.weights)]
    named = [untrained_model(start.weights) for start in starts if is_untrained(start.weights)]
    untrained = [resolve(config, None, model) for model in named if model is not None]
    resolved = [resolve(config, weights) for weights in files]
    with_fpn = [config for config, weights in zip(resolved, files, strict=True) if has_fpn(weights)]
    backbones, widths = {each.backbone for each in resolved + untrained}, {each.fpn_width for each in with_fpn}
    if len(backbones) > 1:
        raise UserError(f"weights of different backbones cannot be compared: {', '.join(sorted(backbones))}")
    if len(widths) > 1:
        raise UserError(f"weights with FPNs of different widths cannot be compared: {sorted(widths)}")
    pyramids = {each.frozen_fpn for each in with_fpn}
    if len(pyramids) > 1:
        parts = "; ".join(sorted(" ".join(pyramid) for pyramid in pyramids))
        raise UserError(
            f"weights with different parts of an FPN cannot be compared ({parts}): name them by --frozen-fpn"
        )
    return (with_fpn or resolved or untrained or [resolve(config, None)])[0]


def _scores(runs: Sequence[Path]) -> dict[str, dict[str, list[float]]]:
    scores: dict[str, dict[str, list[float]]] = {}
    for folder in runs:
        lines = read_scores(folder)
        if not lines:
            raise UserError(f"{folder / 'scores.jsonl'}: has no evaluation: resume the run, or restore the file")
        for kind, values in lines[-1]["scores"].items():
            for name, value in values.items():
                scores.setdefault(kind, {}).setdefault(name, []).append(math.nan if value is None else value)
    return scores


def _differences(
    folders: dict[str, list[Path]], val: DetectionData, replicates: int, *, show: bool
) -> tuple[Difference, ...]:
    if len(folders) < 2:
        return ()
    val = without_remembered(val, [folder for runs in folders.values() for folder in runs])
    ids = {record.image_id for record in val.records}
    resamplings: dict[str, np.ndarray] = {}
    plain: dict[str, float] = {}
    for name, runs in folders.items():
        resampled_runs, plain_runs = [], []
        for folder in runs:
            if show:
                print(f"resampling the images of {folder.name}, {replicates} times", flush=True)
            rows = [row for row in read_results(folder / "results.json") if row["image_id"] in ids]
            classes = match_detections(val, rows)
            resampled_runs.append(resample_precision(classes, len(val), replicates=replicates, seed=0))
            plain_runs.append(average_precision(classes, np.ones(len(val))))
        resamplings[name], plain[name] = np.array(resampled_runs), float(np.mean(plain_runs))
    return tuple(
        Difference(
            first=a, second=b, value=plain[a] - plain[b],
            **dict(zip(("low", "high"), paired_interval(resamplings[a], resamplings[b], seed=0), strict=True)),
        )
        for a, b in itertools.combinations(folders, 2)
    )  # fmt: skip


def to_json(comparison: Comparison, recipe: DetectRecipe) -> dict[str, Any]:
    """As plain data: scores from 0 to 1, None where there is no object."""
    scores = {
        name: {
            kind: {score: [None if math.isnan(v) else v for v in values] for score, values in by_score.items()}
            for kind, by_score in kinds.items()
        }
        for name, kinds in comparison.scores.items()
    }
    content = {
        "kind": "compare",
        "recipe": recipe.to_json(),
        "frozen": comparison.frozen,
        "seeds": list(comparison.seeds),
        "inits": comparison.inits,
        "scores": scores,
        "differences": [dataclasses.asdict(one) for one in comparison.differences],
        "runs": {name: [str(folder) for folder in runs] for name, runs in comparison.folders.items()},
    }
    return content | {"verdict": list(comparison_verdict(content))}
