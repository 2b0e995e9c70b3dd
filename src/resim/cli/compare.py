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

from resim.cli.detect import DataOptions, chosen_recipe, read_data, recipe_of
from resim.cli.options import read_options
from resim.cli.val_fraction import check_val_options, with_held_out
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


_NO_VAL = (
    "--val is needed: a split of DATA or another data set, to evaluate on; or --val-fraction 0.2, which holds a fifth "
    "of the images out for it"
)


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
    folders = sorted(path.parent for path in options.run.out.glob("*/config.json"))
    shares = options.data_options.val_fraction is not None or bool(folders)
    if options.data_options.val is None and not shares:
        raise UserError(_NO_VAL)
    check_val_options(options.data_options)
    if options.replicates < 1:
        raise UserError(f"--replicates {options.replicates}: must be at least 1")
    chosen = recipe_of(recipe.name, options.detector, options.images, options.tune)
    data, val = read_data(options.data, options.data_options)
    data, val = with_held_out(data, val, options.data_options, options.tune.seed, folders)
    if val is None:
        raise UserError(_NO_VAL)

    from resim.detection.bad_images import without_remembered
    from resim.detection.compare import Start, compare, to_json
    from resim.detection.comparison_verdict import comparison_verdict
    from resim.report.comparison_pictures import draw_ap_curves, draw_comparison_sheet

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
    print_scores(found, len(without_remembered(val, [folder for runs in found.folders.values() for folder in runs])))
    print(f"{out / 'compare.json'}, {out / 'curves.png'}, {out / 'detections.png'}")
    for line in comparison_verdict(to_json(found, chosen)):
        print(line)


def print_scores(found: Comparison, images: int) -> None:
    """Print the table."""
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


def _mean(values: Sequence[float]) -> str:
    known = [100 * value for value in values if not math.isnan(value)]
    if not known:
        return "-"
    mean = sum(known) / len(known)
    if len(known) == 1:
        return f"{mean:.2f}"
    deviation = math.sqrt(sum((value - mean) ** 2 for value in known) / (len(known) - 1))
    return f"{mean:.2f} ± {deviation:.2f}"
