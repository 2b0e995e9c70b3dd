"""`resim compare`: options, and calls of the rooms that do the work."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.table import Table

from resim.cli_detect import DataOptions, chosen_recipe, read_data, recipe_of
from resim.cli_options import read_options
from resim.detection.config import DetectorConfig, DetectRun, ImagesConfig, TuneConfig
from resim.errors import UserError

if TYPE_CHECKING:
    from resim.detection.compare import Comparison


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
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
    """Draws of the images for the intervals."""
    data_options: DataOptions
    detector: DetectorConfig
    images: ImagesConfig
    tune: TuneConfig
    run: DetectRun


def compare_verb(argv: Sequence[str]) -> None:
    """Fine-tune with the same protocol from several initialisations and seeds; go on where it was stopped."""
    name, recipe, run, _ = chosen_recipe(argv, "compare")
    default = CompareOptions(
        data=tyro.MISSING, init=tyro.MISSING, recipe=name, data_options=DataOptions(), detector=recipe.detector,
        images=recipe.images, tune=recipe.tune, run=run,
    )  # fmt: skip
    options = read_options(CompareOptions, argv, "compare", compare_verb.__doc__ or "", default)
    if options.run.out is None:
        raise UserError("--out is needed: the folder of the comparison, where the same command goes on")
    if options.data_options.val is None:
        raise UserError("--val is needed: a split of DATA or another data set, to evaluate on")
    if options.replicates < 1:
        raise UserError(f"--replicates {options.replicates}: must be at least 1")
    chosen = recipe_of(recipe.name, options.detector, options.images, options.tune)
    data, val = read_data(options.data, options.data_options)
    assert val is not None

    from resim.detection.bad_images import without_remembered
    from resim.detection.compare import Start, compare
    from resim.pictures.comparison import draw_ap_curves, draw_comparison_sheet

    run = dataclasses.replace(options.run, resume=False)
    starts = [Start.parse(text) for text in options.init]
    out = options.run.out
    found = compare(chosen, run, data, val, starts, options.seeds, out, replicates=options.replicates)
    if found is None:
        return
    frozen = f", {found.frozen} frozen" if found.frozen else ""
    title = f"{chosen.name}{frozen}: {data.source} to {val.source}"
    draw_ap_curves(found, out / "curves.png", title=title)
    draw_comparison_sheet(found, val, out / "detections.png", title=title)
    tell(found, len(without_remembered(val, [folder for runs in found.folders.values() for folder in runs])))
    print(f"{out / 'compare.json'}, {out / 'curves.png'}, {out / 'detections.png'}")


def tell(found: Comparison, images: int) -> None:
    """Print the table, and what can be said of the differences."""
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    kinds = found.scores[found.names[0]]
    columns = [(kind, score) for kind, scores in kinds.items() for score in scores]
    table = Table("init", *(f"{kind} {score}" for kind, score in columns), box=None, padding=(0, 2, 0, 0))
    for name in found.names:
        table.add_row(name, *(_mean(found.scores[name].get(kind, {}).get(score, [])) for kind, score in columns))
    count = len(found.seeds)
    console.print()
    console.print(table)
    console.print(
        f"in percent; mean and standard deviation over {count} seeds, {images} images"
        if count > 1
        else f"in percent; one seed, so that the spread over seeds is not known; {images} images"
    )
    if found.frozen:
        console.print(f"frozen in all runs: {found.frozen}; everything else was trained")
    what = "images and seeds" if count > 1 else "images alone"
    for one in found.differences:
        sure = "" if one.is_sure else ": within the noise, these runs cannot tell them apart"
        console.print(
            f"COCO's box AP, {one.first} less {one.second}: {100 * one.value:+.2f} points, "
            f"95 % interval {100 * one.low:+.2f} to {100 * one.high:+.2f} over {what}{sure}"
        )


def _mean(values: Sequence[float]) -> str:
    known = [100 * value for value in values if not math.isnan(value)]
    if not known:
        return "-"
    mean = sum(known) / len(known)
    if len(known) == 1:
        return f"{mean:.2f}"
    deviation = math.sqrt(sum((value - mean) ** 2 for value in known) / (len(known) - 1))
    return f"{mean:.2f} ± {deviation:.2f}"
