"""The `resim` command: one function a verb, each of which reads its options and calls the room that does the work."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from resim import recipes
from resim.cli.exchange import export_verb, import_verb
from resim.cli.options import Sources, named_or_stored, nearest, print_recipes, read_options, recipe_called
from resim.cli.pictures import explore_verb, report_verb, similarity_verb
from resim.errors import UserError
from resim.model.config import ModelConfig
from resim.regions.level import Level
from resim.runs.config import OptimConfig, Recipe, RunConfig, read_recipe, read_run_settings
from resim.views.config import ViewsConfig


@dataclass(frozen=True, kw_only=True)
class PretrainOptions:
    """Options of `resim pretrain`."""

    sources: Sources
    """Folders of images (any depth), images, or .txt files with one path a line."""
    recipe: str = "resim-fpn"
    """Name of a recipe (`resim recipes` lists them), or a JSON file such as a run's config.json."""
    model: ModelConfig
    views: ViewsConfig
    optim: OptimConfig
    run: RunConfig


@dataclass(frozen=True, kw_only=True)
class PreviewOptions:
    """Options of `resim preview`."""

    sources: Sources
    """Folders of images (any depth), images, or .txt files with one path a line."""
    recipe: str = "resim-fpn"
    """Name of a recipe, or a JSON file such as a run's config.json."""
    out: Path = Path("preview.png")
    """Picture to write."""
    count: int = 6
    """View pairs on the sheet."""
    seed: int = 0
    """Seed of the images and views."""
    levels: tuple[Level, ...] = ()
    """Levels whose windows are drawn, such as P4:window=48,step=32 (px)."""
    views: ViewsConfig


@dataclass(frozen=True, kw_only=True)
class ScenesOptions:
    """Options of `resim scenes`."""

    out: Annotated[Path, tyro.conf.Positional]
    """Folder for images/ and instances.json."""
    count: int = 512
    """Number of scenes."""
    seed: int = 0
    """Same seed, same files."""
    width: int = 320
    """Width of a scene, px."""
    height: int = 240
    """Height of a scene, px."""


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Options of `resim demo`."""

    data: Path | None = None
    """Your own folder of images; default: scenes that the package draws itself."""
    out: Path | None = None
    """Folder of the demo; default: runs/demo-DATE-TIME."""
    minutes: float = 10.0
    """Minutes for all of it: how much is pre-trained, probed and trained in them is planned by this machine's speed."""
    pairs: int | None = None
    """View pairs that each of the two models is pre-trained on; default: as many as the minutes allow."""
    seed: int = 0
    """Seed of everything random."""


def pretrain_verb(argv: Sequence[str]) -> None:
    """Pre-train on folders of images without labels."""
    name, recipe, run = _chosen_recipe(argv, "pretrain")
    default = PretrainOptions(
        sources=tyro.MISSING, recipe=name, model=recipe.model, views=recipe.views, optim=recipe.optim, run=run
    )
    options = read_options(PretrainOptions, argv, "pretrain", pretrain_verb.__doc__ or "", default)
    try:
        chosen = Recipe(name=recipe.name, model=options.model, views=options.views, optim=options.optim)
    except ValueError as error:
        raise UserError(str(error)) from None
    if options.run.resume and options.run.out is None:
        raise UserError("--resume needs --out: the folder of the run to continue")

    from resim.probes.online import OnlineProbe
    from resim.training.advice import program_words
    from resim.training.pretrain import pretrain

    words = program_words()
    command = [*words, "pretrain", *argv] if words else []
    pretrain(chosen, options.run, options.sources, probe=OnlineProbe, command=command)


def recipes_verb(argv: Sequence[str]) -> None:
    """List the recipes, or print one whole as JSON: `resim recipes NAME`."""
    table = {}
    for name, make in recipes.RECIPES.items():
        recipe = make()
        levels = " ".join(level.name for level in recipe.model.levels) or "-"
        batch = f"{recipe.optim.batch_size} in groups of {recipe.model.group_size}"
        table[name] = (make, (recipe.model.backbone, levels, recipe.views.image_size, batch, recipe.optim.epochs))
    columns = ("backbone", "levels", "view px", "batch", "epochs")
    print_recipes(argv, "recipes", recipes_verb.__doc__ or "", columns, table, recipe_called)


def preview_verb(argv: Sequence[str]) -> None:
    """Draw augmented view pairs with the windows that the loss compares."""
    name, recipe, _ = _chosen_recipe(argv, "preview")
    default = PreviewOptions(sources=tyro.MISSING, recipe=name, levels=recipe.model.levels, views=recipe.views)
    options = read_options(PreviewOptions, argv, "preview", preview_verb.__doc__ or "", default)
    if options.count < 1:
        raise UserError(f"--count {options.count}: must be at least 1")
    if options.out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise UserError(f"--out {options.out}: must end in .png, .jpg or .webp")
    try:
        for level in options.levels:
            level.check_windows(options.views.image_size)
    except ValueError as error:
        raise UserError(str(error)) from None

    from resim.views.folder import find_images

    paths = find_images(options.sources)
    if note := paths.note():
        print(note)

    from resim.draw.view_pairs import preview
    from resim.runs.checkpoints import write_atomically

    sheet = preview(paths, options.views, options.levels, count=options.count, seed=options.seed)
    kind = {".jpg": "jpeg", ".jpeg": "jpeg"}.get(options.out.suffix.lower(), options.out.suffix.lower()[1:])
    write_atomically(options.out, lambda file: sheet.save(file, format=kind))
    print(options.out)


def scenes_verb(argv: Sequence[str]) -> None:
    """Draw scenes of textured objects: JPEG files with COCO-style boxes and masks, the same for the same seed."""
    options = read_options(ScenesOptions, argv, "scenes", scenes_verb.__doc__ or "")

    from resim.scenes.scenes import write_scenes

    path = write_scenes(options.out, options.count, seed=options.seed, width=options.width, height=options.height)
    print(path)


def pack_verb(argv: Sequence[str]) -> None:
    """Pack images into tar shards (webdataset's layout) that `resim pretrain` reads front to back."""
    from resim.cli import pack

    pack.run(read_options(pack.PackOptions, argv, "pack", pack_verb.__doc__ or ""))


def bench_verb(argv: Sequence[str]) -> None:
    """Measure loader and step on this machine and your folder: what limits, and which settings to use."""
    from resim.cli import bench

    name, recipe, _ = _chosen_recipe(argv, "bench")
    default = bench.BenchOptions(
        sources=tyro.MISSING, recipe=name, model=recipe.model, views=recipe.views, optim=recipe.optim,
        bench=bench.BenchConfig(),
    )  # fmt: skip
    bench.run(read_options(bench.BenchOptions, argv, "bench", bench_verb.__doc__ or "", default))


def detect_verb(argv: Sequence[str]) -> None:
    """Fine-tune detectors, evaluate them, detect: `resim detect train|eval|predict|recipes`."""
    from resim.cli.detect import detect

    detect(argv)


def compare_verb(argv: Sequence[str]) -> None:
    """Fine-tune from several initialisations and seeds with one protocol: a table, intervals, curves, detections."""
    from resim.cli import compare

    compare.compare_verb(argv)


def demo_verb(argv: Sequence[str]) -> None:
    """The whole story in ten minutes: pre-train ReSim and MoCo v2, probe both, train detectors, report."""
    began = time.perf_counter()
    options = read_options(DemoOptions, argv, "demo", demo_verb.__doc__ or "")
    if options.data is not None and not options.data.exists():
        raise UserError(f"--data {options.data}: there is no such folder or file")

    from resim.demo.story import demo

    demo(options.data, options.out, minutes=options.minutes, pairs=options.pairs, seed=options.seed, began=began)


def probe_verb(argv: Sequence[str]) -> None:
    """Measure features: nearest neighbours, linear probe, segmentation, retrieval, region correspondence, health."""
    from resim.cli.probe import ProbeOptions, run_probe

    run_probe(read_options(ProbeOptions, argv, "probe", probe_verb.__doc__ or ""))


def _chosen_recipe(argv: Sequence[str], verb: str) -> tuple[str, Recipe, RunConfig]:
    """The defaults of all other options: the recipe that --recipe names, or all of the run to be resumed."""
    name, stored = named_or_stored(argv, verb)
    if stored is not None:
        recipe = read_recipe(stored)
        return recipe.name, recipe, read_run_settings(stored)
    name = name or "resim-fpn"
    return name, recipe_called(name), RunConfig()


VERBS: dict[str, Callable[[Sequence[str]], None]] = {
    "pretrain": pretrain_verb,
    "preview": preview_verb,
    "probe": probe_verb,
    "recipes": recipes_verb,
    "pack": pack_verb,
    "bench": bench_verb,
    "scenes": scenes_verb,
    "similarity": similarity_verb,
    "explore": explore_verb,
    "report": report_verb,
    "detect": detect_verb,
    "compare": compare_verb,
    "import": import_verb,
    "export": export_verb,
    "demo": demo_verb,
}


def _usage() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {(verb.__doc__ or '').strip()}" for name, verb in VERBS.items())
    return (
        "usage: resim VERB ...\n\nRegion similarity pre-training of detection backbones on images without labels.\n\n"
        f"{verbs}\n\n`resim VERB --help` explains its options; `resim --version` prints the version."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code: 0, 2 for what the user can mend, told in one line, 130 for Ctrl+C."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if words else 2
    if words[0] == "--version":
        from resim.version import __version__

        print(__version__)
        return 0
    if words[0] not in VERBS:
        print(f"resim: no verb {words[0]!r}: one of {', '.join(VERBS)}{nearest(words[0], VERBS)}", file=sys.stderr)
        return 2
    try:
        VERBS[words[0]](words[1:])
    except UserError as error:
        print(f"resim {words[0]}: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        print(f"resim {words[0]}: interrupted", file=sys.stderr)
        return 130
    except OSError as error:  # a full disk, a folder that went away
        where = f"{error.filename}: " if error.filename else ""
        print(f"resim {words[0]}: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
