"""Fine-tune a detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from resim.cli.recipe_options import detect_recipe, named_or_stored
from resim.detection.config import DetectorConfig, DetectRecipe, DetectRun, ImagesConfig, TuneConfig
from resim.detection.data import DataOptions, read_train_and_val
from resim.errors import UserError
from resim.exit_codes import FINISHED, STOPPED
from resim.reading import read_json
from resim.runs.config import read_settings

KEPT_ON_RESUME = (
    "images_per_pass", "eval_images", "eval_every", "log_every", "checkpoint_minutes", "max_bad_share", "on_nonfinite",
    "timeout_minutes",
)  # fmt: skip

WHEN_STOPPED = (
    "checkpoints in --out are kept: the same command with --out and --resume auto continues, or starts from the "
    "beginning"
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `resim detect train`."""

    data: Annotated[Path, tyro.conf.Positional]
    """COCO JSON file, YOLO's data.yaml, or a folder in COCO's, VOC's, Cityscapes' or YOLO's layout."""
    init: str = "random"
    """Weights to begin with: random, a run's folder, a file of weights of any program that resim import reads, or
    torchvision:NAME such as torchvision:resnet50 (ImageNet's weights, downloaded once)."""
    recipe: str = "quick"
    """Name of a protocol (`resim detect recipes` lists them), or a run's config.json."""
    data_options: DataOptions
    detector: DetectorConfig
    images: ImagesConfig
    tune: TuneConfig
    run: DetectRun


def defaults(argv: Sequence[str]) -> Options:
    """The values of the protocol that --recipe names, or all settings of the run to resume."""
    name, recipe, run, init = recipe_and_run(argv, "detect train")
    return Options(
        data=tyro.MISSING, init=init, recipe=name, data_options=DataOptions(), detector=recipe.detector,
        images=recipe.images, tune=recipe.tune, run=run,
    )  # fmt: skip


def recipe_and_run(argv: Sequence[str], verb: str) -> tuple[str, DetectRecipe, DetectRun, str]:
    """What --recipe stands for, its recipe, the settings of the run and --init: of the run to resume, if there is one.

    Raises:
        UserError: no such recipe, or a run whose config.json cannot be read.
    """
    name, stored = named_or_stored(argv, verb)
    if stored is None:
        name = name or "quick"
        return name, detect_recipe(name), DetectRun(), "random"
    recipe = detect_recipe(str(stored))
    init = read_json(stored).get("init", "random")
    return str(stored), recipe, read_settings(stored, DetectRun, KEPT_ON_RESUME), init


def recipe_with(name: str, detector: DetectorConfig, images: ImagesConfig, tune: TuneConfig) -> DetectRecipe:
    """The protocol with every field as the options set it.

    Raises:
        UserError: fields that do not go together.
    """
    try:
        return DetectRecipe(name=detect_recipe(name).name, detector=detector, images=images, tune=tune)
    except ValueError as error:
        raise UserError(str(error)) from None


def run(options: Options) -> int:
    """Fine-tune a detector, or resume a run.

    Returns:
        The exit code.

    Raises:
        UserError: as `read_train_and_val` and `train_detector`.
    """
    if options.run.resume and options.run.out is None:
        raise UserError("--resume needs --out: the folder of the run to continue")
    if options.run.out is not None:  # before the data, which may take minutes to read
        from resim.runs import folder as run_folder  # imports PyTorch, which no --help waits for

        run_folder.check_folder(options.run.out, resume=run_folder.should_resume(options.run.out, options.run.resume))
    recipe = recipe_with(options.recipe, options.detector, options.images, options.tune)
    folders = [options.run.out] if options.run.out is not None and options.run.resume else []
    data, val = read_train_and_val(options.data, options.data_options, seed=options.tune.seed, folders=folders)

    from resim.detection.train import train_detector

    result = train_detector(recipe, options.run, data, val, init=options.init)
    return STOPPED if result.stopped else FINISHED
