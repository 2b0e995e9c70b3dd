"""`resim detect train|eval|predict`: options, and calls of the room that does the work."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from resim.cli.options import named_or_stored, nearest, read_options
from resim.cli.val_fraction import check_val_options, with_held_out
from resim.counts import counted
from resim.detection.config import DetectorConfig, DetectRecipe, DetectRun, ImagesConfig, TuneConfig
from resim.detection.recipes import DETECT_RECIPES
from resim.errors import UserError
from resim.runs.config import read_recipe, read_settings

if TYPE_CHECKING:
    from resim.datasets.records import DetectionData


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """A labelled data set."""

    split: str | None = None
    """train2017 for a folder of COCO files, "2007 trainval+2012 trainval" for VOC, train or val for Cityscapes
    and YOLO."""
    val: str | None = None
    """To evaluate on: a split of DATA, or another data set's path; none: no evaluation."""
    val_split: str | None = None
    """The split, where --val is a path."""
    val_fraction: float | None = None
    """Where there is no --val: share of the images, such as 0.2, that is drawn at random by the seed, evaluated on and
    never trained on."""
    images_in: tuple[Path, ...] = ()
    """Folders of the images, for a COCO file whose images are not beside it."""
    val_images_in: tuple[Path, ...] = ()
    """The same for --val."""
    classes: tuple[str, ...] = ()
    """Names of the classes, for VOC's layout with others than VOC's twenty, or for YOLO files without names."""
    crowd_as_objects: bool = False
    """Take crowd regions (iscrowd 1) of COCO files as objects; CVAT, RectLabel and SAM's tools mark brush masks so."""
    strict: bool = False
    """Stop at faults of the annotations instead of repairing and listing them."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
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


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Options of `resim detect eval`."""

    model: Annotated[Path, tyro.conf.Positional]
    """A fine-tuning's folder or checkpoint, or a COCO results file (.json) to score."""
    data: Annotated[Path, tyro.conf.Positional]
    """COCO JSON file, YOLO's data.yaml, or a folder in COCO's, VOC's, Cityscapes' or YOLO's layout."""
    split: str | None = None
    """val2017 for a folder of COCO files, "2007 test" for VOC, val for Cityscapes and YOLO."""
    images_in: tuple[Path, ...] = ()
    """Folders of the images, for a COCO file whose images are not beside it."""
    classes: tuple[str, ...] = ()
    """Names of the classes, for VOC's layout with others than VOC's twenty, or for YOLO files without names."""
    crowd_as_objects: bool = False
    """Take crowd regions (iscrowd 1) of COCO files as objects; CVAT, RectLabel and SAM's tools mark brush masks so."""
    all_images: bool = False
    """Score all images of DATA. Without it, a run with --val-fraction is scored on the part of its own data that it
    held out."""
    strict: bool = False
    """Stop at faults of the annotations instead of repairing and listing them."""
    out: Path | None = None
    """Folder for scores.jsonl, results.json and pictures; none: the scores are only printed."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: a GPU if there is one."""
    eval_images: int = 1
    """Images that are detected in together."""
    max_bad_share: float = 0.1
    """Stop when more than this share of the images cannot be decoded; these do not count."""
    workers: int = 2
    """Processes that decode images."""


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Options of `resim detect predict`."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE|DIR [...]")]
    """Images, folders of them, or a YOLO data.yaml."""
    model: Path
    """A fine-tuning's folder or checkpoint."""
    out: Path = Path("detections")
    """Folder for the pictures and results.json."""
    threshold: float = 0.5
    """Score from which detections are drawn (results.json has all)."""
    pictures: bool = True
    """Draw the detections on every image."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: a GPU if there is one."""


def detect(argv: Sequence[str]) -> None:
    """Fine-tune a detector from any pre-training, evaluate it, and detect: `resim detect train|eval|predict`."""
    parts = {"train": _train, "eval": _eval, "predict": _predict, "recipes": _recipes}
    if not argv or argv[0] not in parts:
        if argv and argv[0] in ("-h", "--help"):
            print("usage: resim detect train|eval|predict|recipes ...\n")
            for name, part in parts.items():
                print(f"  {name:<8} {(part.__doc__ or '').strip()}")
            return
        found = f"not {argv[0]!r}{nearest(argv[0], parts)}" if argv else "none is given"
        raise UserError(f"one of {', '.join(parts)} is needed, {found}")
    parts[argv[0]](argv[1:])


def _train(argv: Sequence[str]) -> None:
    """Fine-tune a detector."""
    name, recipe, run, init = chosen_recipe(argv, "detect train")
    default = TrainOptions(
        data=tyro.MISSING, init=init, recipe=name, data_options=DataOptions(), detector=recipe.detector,
        images=recipe.images, tune=recipe.tune, run=run,
    )  # fmt: skip
    options = read_options(TrainOptions, argv, "detect train", _train.__doc__ or "", default)
    if options.run.resume and options.run.out is None:
        raise UserError("--resume needs --out: the folder of the run to continue")
    chosen = recipe_of(recipe.name, options.detector, options.images, options.tune)
    check_val_options(options.data_options)
    data, val = read_data(options.data, options.data_options)
    folders = [options.run.out] if options.run.out is not None and options.run.resume else []
    data, val = with_held_out(data, val, options.data_options, options.tune.seed, folders)

    from resim.detection.train import train_detector

    train_detector(chosen, options.run, data, val, init=options.init)


def _eval(argv: Sequence[str]) -> None:
    """Score a detector, or a results file, by the data set's official evaluation."""
    options = read_options(EvalOptions, argv, "detect eval", _eval.__doc__ or "")
    if options.out is not None and (options.out / "config.json").exists():
        raise UserError(f"--out {options.out}: holds a run, whose own scores would be replaced: name another folder")
    if options.eval_images < 1:
        raise UserError(f"--eval-images {options.eval_images}: must be at least 1")
    if not options.max_bad_share >= 0:
        raise UserError(f"--max-bad-share {options.max_bad_share:g}: must be at least 0")
    if options.workers < 0:
        raise UserError(f"--workers {options.workers}: must be at least 0")

    from resim.datasets.layouts import read_detection

    data = read_detection(
        options.data, options.split, images=options.images_in or None, classes=options.classes or None,
        strict=options.strict, check_images=options.model.suffix != ".json",
        crowd_as_objects=options.crowd_as_objects,
    )  # fmt: skip

    from resim.detection.bad_images import scored_part
    from resim.detection.checkpoint import load_detector
    from resim.detection.evaluate import kinds_of, lines, official_scores, write_evaluation
    from resim.detection.held_out import part_to_score
    from resim.detection.left_out import set_aside
    from resim.detection.predict import detect
    from resim.detection.prepare import with_classes_of
    from resim.distributed.processes import start_processes
    from resim.runs.bad_files import BadFiles
    from resim.scores.results import check_masks, match_ids, read_results, result_kinds

    with start_processes(options.device) as processes:
        detector = None
        if options.model.suffix != ".json":
            detector = load_detector(options.model, processes.device)
            data = with_classes_of(data, detector.classes, detector.category_ids, detector.source)
            if not options.all_images:
                repairs = data.repairs
                data, note = part_to_score(data, options.model, detector.recipe)
                data = dataclasses.replace(data, repairs=repairs)
                if processes.first and note:
                    print(note)
        for line in data.repairs.lines() if processes.first else ():
            print(line)
        if detector is None:
            results, source, step = match_ids(read_results(options.model), data), str(options.model), 0
            check_masks(results, source)
            kinds = result_kinds(results)
            if processes.first:
                seen = len({str(result.get("image_id")) for result in results})
                print(f"{counted(len(results), 'detection')} in {seen} of {counted(len(data), 'image')}")
        else:
            kinds, source, step = kinds_of(detector.recipe.detector), detector.source, detector.step
            bad: dict[str, str] = {}
            results = detect(
                detector.model, data, processes, precision=detector.precision, batch=options.eval_images,
                workers=options.workers, bad=bad,
            )  # fmt: skip
            if processes.first and options.out is not None and bad:
                BadFiles(options.out, processes, options.max_bad_share).add(bad)
            data, note = scored_part(data, bad, options.max_bad_share)
            if processes.first and note:
                print(note)
        if not processes.first:
            return
        for line in set_aside(data, masks="segm" in kinds, keypoints="keypoints" in kinds):
            print(line)
        scores = official_scores(data, results, kinds, source=source)
        for line in lines(scores, data):
            print(line)
        if options.out is not None:
            write_evaluation(options.out, data, results, scores, step=step, name=options.model.name, title=data.source)
            print(options.out)


def _predict(argv: Sequence[str]) -> None:
    """Detect in images without labels: pictures, and a COCO results file."""
    options = read_options(PredictOptions, argv, "detect predict", _predict.__doc__ or "")
    if not 0 <= options.threshold <= 1:
        raise UserError(f"--threshold {options.threshold}: must be in [0, 1]")

    from resim.detection.predict import predict_images

    predict_images(
        options.model, options.images, options.out, threshold=options.threshold, pictures=options.pictures,
        device=options.device,
    )  # fmt: skip
    print(options.out / "results.json")


def _recipes(argv: Sequence[str]) -> None:
    """List the protocols, or print one whole as JSON: `resim detect recipes NAME`."""
    from resim.cli.options import print_recipes

    table = {}
    for name, make in DETECT_RECIPES.items():
        recipe = make()
        sizes = recipe.images.min_sizes
        table[name] = (
            make,
            (recipe.detector.neck, f"{recipe.tune.steps} of {recipe.tune.batch_size}", f"{sizes[0]}-{sizes[-1]}"),
        )
    print_recipes(argv, "detect recipes", _recipes.__doc__ or "", ("neck", "steps", "px"), table, recipe_called)


def recipe_of(name: str, detector: DetectorConfig, images: ImagesConfig, tune: TuneConfig) -> DetectRecipe:
    """The protocol with every field as it was set.

    Raises:
        UserError: fields that do not go together.
    """
    try:
        return DetectRecipe(name=name, detector=detector, images=images, tune=tune)
    except ValueError as error:
        raise UserError(str(error)) from None


def read_data(path: Path, options: DataOptions) -> tuple[DetectionData, DetectionData | None]:
    """What is trained on, and what is evaluated on.

    Raises:
        UserError: a data set that cannot be read, or options that do not go together.
    """
    from resim.datasets.layouts import is_data_set, read_detection

    def read(where: Path, split: str | None, images: tuple[Path, ...]) -> DetectionData:
        return read_detection(
            where, split, images=images or None, classes=options.classes or None, strict=options.strict,
            crowd_as_objects=options.crowd_as_objects,
        )  # fmt: skip

    # a folder of images beside DATA often has the name of a split
    is_path = options.val is not None and (len(Path(options.val).parts) > 1 or is_data_set(Path(options.val)))
    if options.val_split is not None and not is_path:
        raise UserError(f"--val-split {options.val_split}: goes with a --val that is the path of another data set")
    data = read(path, options.split, options.images_in)
    if options.val is None:
        return data, None
    if is_path:
        val = read(Path(options.val), options.val_split, options.val_images_in)
    else:
        val = read(path, options.val, options.val_images_in or options.images_in)

    from resim.detection.prepare import with_classes_of

    return data, with_classes_of(val, data.classes, data.category_ids, data.source)


def chosen_recipe(argv: Sequence[str], verb: str) -> tuple[str, DetectRecipe, DetectRun, str]:
    """The defaults of all other options: the protocol that --recipe names, or all of the run to be resumed."""
    name, stored = named_or_stored(argv, verb)
    if stored is not None:
        recipe = read_recipe(stored, DetectRecipe)
        init = json.loads(stored.read_text(encoding="utf-8")).get("init", "random")
        return recipe.name, recipe, read_settings(stored, DetectRun, _KEPT_ON_RESUME), init
    name = name or "quick"
    return name, recipe_called(name), DetectRun(), "random"


def recipe_called(name: str) -> DetectRecipe:
    """The protocol of a name, or of a .json file.

    Raises:
        UserError: there is none.
    """
    if name in DETECT_RECIPES:
        return DETECT_RECIPES[name]()
    if Path(name).suffix == ".json":
        return read_recipe(Path(name), DetectRecipe)
    raise UserError(
        f"no protocol {name!r}: one of {', '.join(DETECT_RECIPES)}, or a .json file that holds one"
        f"{nearest(name, DETECT_RECIPES)}"
    )


_KEPT_ON_RESUME = ("images_per_pass", "eval_images", "eval_every", "log_every", "checkpoint_minutes", "max_bad_share")
