"""Fine-tune from several initialisations and seeds with one protocol: a table, intervals, curves, detections."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from resim.cli.detect_train import recipe_and_run, recipe_with
from resim.detection.config import DetectorConfig, DetectRun, ImagesConfig, TuneConfig
from resim.detection.data import DataOptions, read_compared_data
from resim.errors import StoppedError, UserError

WHEN_STOPPED = "finished runs and checkpoints in --out are kept: the same command goes on"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `resim compare`."""

    data: Annotated[Path, tyro.conf.Positional]
    """COCO JSON file, YOLO's data.yaml, or a folder in COCO's, VOC's, Cityscapes' or YOLO's layout."""
    init: tuple[str, ...]
    """Weights to begin with, two or more, each of them random, a run's folder, a file of weights of any program that
    resim import reads, or torchvision:NAME such as torchvision:resnet50 (ImageNet's weights, downloaded once);
    NAME=WEIGHTS gives one a name."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the runs of each."""
    recipe: str = "quick"
    """Name of a protocol (`resim detect recipes` lists them), or a run's config.json."""
    replicates: int = 300
    """Resamplings of the images for the intervals."""
    data_options: DataOptions
    detector: DetectorConfig
    images: ImagesConfig
    tune: TuneConfig
    run: DetectRun


def defaults(argv: Sequence[str]) -> Options:
    """The values of the protocol that --recipe names."""
    name, recipe, run, _ = recipe_and_run(argv, "compare")
    return Options(
        data=tyro.MISSING, init=tyro.MISSING, recipe=name, data_options=DataOptions(), detector=recipe.detector,
        images=recipe.images, tune=recipe.tune, run=run,
    )  # fmt: skip


def run(options: Options) -> None:
    """Run what is missing of the comparison, write it and print it.

    Raises:
        StoppedError: as `compare`.
        UserError: as `read_compared_data` and `compare`; options that cannot work.
    """
    out = options.run.out
    if out is None:
        raise UserError("--out is needed: the folder of the comparison, where the same command goes on")
    if options.replicates < 1:
        raise UserError(f"--replicates {options.replicates}: must be at least 1")
    recipe = recipe_with(options.recipe, options.detector, options.images, options.tune)
    data, val = read_compared_data(options.data, options.data_options, seed=options.tune.seed, out=out)

    from resim.detection.compare import compare, to_json
    from resim.detection.comparison_table import print_comparison
    from resim.detection.comparison_verdict import comparison_verdict
    from resim.report.comparison_pictures import draw_ap_curves, draw_comparison_sheet

    settings = dataclasses.replace(options.run, resume=False)
    try:
        comparison = compare(
            recipe, settings, data, val, options.init, options.seeds, out, replicates=options.replicates
        )
    except StoppedError as stop:
        raise StoppedError(f"{stop}; the same command goes on") from None
    if comparison is None:  # --stop-after ended it, or not the first process
        return
    frozen = f", {comparison.frozen} frozen" if comparison.frozen else ""
    title = f"{recipe.name}{frozen}: {data.source} to {val.source}"
    print_comparison(comparison, val)  # first: a picture may not be written
    curves = draw_ap_curves(comparison, out / "curves.png", title=title)
    sheet = draw_comparison_sheet(comparison, val, out / "detections.png", title=title)
    print(", ".join(str(path) for path in (out / "compare.json", curves, sheet) if path is not None))
    for line in comparison_verdict(to_json(comparison, recipe)):
        print(line)
