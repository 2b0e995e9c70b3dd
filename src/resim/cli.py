"""The `resim` command: one function a verb, each of which reads its options and calls the room that does the work."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import tyro
from rich.console import Console
from rich.table import Table

from resim import recipes
from resim.errors import UserError
from resim.model.encoder import ModelConfig
from resim.regions.level import Level
from resim.training.config import OptimConfig, Recipe, RunConfig, read_recipe, read_run_settings
from resim.views.crops import ViewsConfig

T = TypeVar("T")
Sources = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DIR [DIR ...]")]

_registry = tyro.constructors.ConstructorRegistry()


@_registry.primitive_rule
def _level_rule(
    type_info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Level] | None:
    """A level is one word on the command line: P4:window=48,step=32,negatives=all."""
    if type_info.type is not Level:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="LEVEL",
        instance_from_str=lambda words: _parse_level(words[0]),
        is_instance=lambda instance: isinstance(instance, Level),
        str_from_instance=lambda level: [str(level)],
    )


class _OptionError(Exception):
    """A value on the command line that cannot be read; tyro passes it on where it would hide a ValueError's text."""


def _parse_level(text: str) -> Level:
    try:
        return Level.parse(text)
    except ValueError as error:
        raise _OptionError(f"--levels: {error}") from None


def _read(kind: type[T], argv: Sequence[str], verb: str, description: str, default: T | None = None) -> T:
    """Options as a dataclass.

    Raises:
        UserError: options that cannot be read, in one line.
    """
    settings: dict[str, Any] = {} if default is None else {"default": default}
    told = io.StringIO()
    try:
        with _registry, contextlib.redirect_stderr(told):
            return tyro.cli(
                kind,
                args=list(argv),
                prog=f"resim {verb}",
                description=description,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
                **settings,
            )
    except _OptionError as error:
        raise UserError(str(error)) from None
    except SystemExit as stop:
        if stop.code in (0, None):  # --help
            raise
        raise UserError(f"{_first_paragraph(told.getvalue())} (resim {verb} --help explains the options)") from None


class _OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are told in one line, as all others."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} ({self.prog} --help explains the options)")


def _first_paragraph(box: str) -> str:
    """What tyro's box says, up to its first rule, as one line."""
    words: list[str] = []
    for line in box.splitlines():
        text = line.strip("│╭╮╰╯ ")
        if text.strip("─ ") == "" and words:
            break
        if "─" not in text:
            words += text.split()
    return " ".join(words) or "the options cannot be read"


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
    pairs: int = 6144
    """View pairs that each of the two models is trained on."""
    seed: int = 0
    """Seed of everything random."""


def pretrain_verb(argv: Sequence[str]) -> None:
    """Pre-train on folders of images without labels."""
    from resim.training.pretrain import pretrain

    name, recipe, run = _chosen_recipe(argv, "pretrain")
    default = PretrainOptions(
        sources=tyro.MISSING, recipe=name, model=recipe.model, views=recipe.views, optim=recipe.optim, run=run
    )
    options = _read(PretrainOptions, argv, "pretrain", pretrain_verb.__doc__ or "", default)
    try:
        chosen = Recipe(name=recipe.name, model=options.model, views=options.views, optim=options.optim)
    except ValueError as error:
        raise UserError(str(error)) from None
    if options.run.resume and options.run.out is None:
        raise UserError("--resume needs --out: the folder of the run to continue")
    pretrain(chosen, options.run, options.sources)


def recipes_verb(argv: Sequence[str]) -> None:
    """List the recipes, or print one whole as JSON: `resim recipes NAME`."""
    parser = _OneLineParser(prog="resim recipes", description=recipes_verb.__doc__)
    parser.add_argument("name", nargs="?", help="a recipe, printed with every field")
    chosen = parser.parse_args(argv).name
    if chosen:
        print(json.dumps(_recipe_called(chosen).to_json(), indent=2))
        return
    table = Table("recipe", "backbone", "levels", "view px", "batch", "epochs", "what", box=None, padding=(0, 2, 0, 0))
    for name, make in recipes.RECIPES.items():
        recipe = make()
        levels = " ".join(level.name for level in recipe.model.levels) or "-"
        batch = f"{recipe.optim.batch_size} in groups of {recipe.model.group_size}"
        cells = (recipe.model.backbone, levels, recipe.views.image_size, batch, recipe.optim.epochs)
        table.add_row(name, *map(str, cells), (make.__doc__ or "").strip())
    Console(width=None if sys.stdout.isatty() else 180).print(table)


def preview_verb(argv: Sequence[str]) -> None:
    """Draw augmented view pairs with the windows that the loss compares."""
    from resim.pictures.pairs import preview
    from resim.training.checkpoints import write_atomically
    from resim.views.folder import find_images

    name, recipe, _ = _chosen_recipe(argv, "preview")
    default = PreviewOptions(sources=tyro.MISSING, recipe=name, levels=recipe.model.levels, views=recipe.views)
    options = _read(PreviewOptions, argv, "preview", preview_verb.__doc__ or "", default)
    if options.count < 1:
        raise UserError(f"--count {options.count}: must be at least 1")
    if options.out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise UserError(f"--out {options.out}: must end in .png, .jpg or .webp")
    try:
        for level in options.levels:
            level.windows(options.views.image_size)
    except ValueError as error:
        raise UserError(str(error)) from None
    sheet = preview(find_images(options.sources), options.views, options.levels, count=options.count, seed=options.seed)
    kind = {".jpg": "jpeg", ".jpeg": "jpeg"}.get(options.out.suffix.lower(), options.out.suffix.lower()[1:])
    write_atomically(options.out, lambda file: sheet.save(file, format=kind))
    print(options.out)


def scenes_verb(argv: Sequence[str]) -> None:
    """Draw scenes of textured objects: JPEG files with COCO-style boxes and masks, the same for the same seed."""
    from resim.views.scenes import write_scenes

    options = _read(ScenesOptions, argv, "scenes", scenes_verb.__doc__ or "")
    path = write_scenes(options.out, options.count, seed=options.seed, width=options.width, height=options.height)
    print(path)


def pack_verb(argv: Sequence[str]) -> None:
    """Pack images into tar shards (webdataset's layout) that `resim pretrain` reads front to back."""
    from resim import cli_pack

    cli_pack.run(_read(cli_pack.PackOptions, argv, "pack", pack_verb.__doc__ or ""))


def bench_verb(argv: Sequence[str]) -> None:
    """Measure loader and step on this machine and your folder: what limits, and which settings to use."""
    from resim import cli_bench

    name, recipe, _ = _chosen_recipe(argv, "bench")
    default = cli_bench.BenchOptions(
        sources=tyro.MISSING, recipe=name, model=recipe.model, views=recipe.views, optim=recipe.optim,
        bench=cli_bench.BenchConfig(),
    )  # fmt: skip
    cli_bench.run(_read(cli_bench.BenchOptions, argv, "bench", bench_verb.__doc__ or "", default))


def demo_verb(argv: Sequence[str]) -> None:
    """Pre-train ReSim and MoCo v2 for a few minutes and show what each has learned."""
    from resim.demo import demo

    options = _read(DemoOptions, argv, "demo", demo_verb.__doc__ or "")
    demo(options.data, options.out, pairs=options.pairs, seed=options.seed)


def _chosen_recipe(argv: Sequence[str], verb: str) -> tuple[str, Recipe, RunConfig]:
    """The defaults of all other options: the recipe that --recipe names, or all of the run to be resumed."""
    parser = _OneLineParser(prog=f"resim {verb}", add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", action="store_true")
    known, _ = parser.parse_known_args([word for word in argv if word not in ("-h", "--help")])
    if known.recipe is None and known.resume and known.out is not None:
        stored = known.out / "config.json"
        if stored.exists():
            recipe = read_recipe(stored)
            return recipe.name, recipe, read_run_settings(stored)
    name = known.recipe or "resim-fpn"
    return name, _recipe_called(name), RunConfig()


def _recipe_called(name: str) -> Recipe:
    if name in recipes.RECIPES:
        return recipes.RECIPES[name]()
    if Path(name).suffix == ".json":
        return read_recipe(Path(name))
    raise UserError(f"no recipe {name!r}: one of {', '.join(recipes.RECIPES)}, or a .json file that holds one")


VERBS: dict[str, Callable[[Sequence[str]], None]] = {
    "pretrain": pretrain_verb,
    "preview": preview_verb,
    "recipes": recipes_verb,
    "pack": pack_verb,
    "bench": bench_verb,
    "scenes": scenes_verb,
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
    """Run the command line; returns the exit code: 0, or 2 for what the user can mend, told in one line."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if words else 2
    if words[0] == "--version":
        import resim

        print(resim.__version__)
        return 0
    if words[0] not in VERBS:
        print(f"resim: no verb {words[0]!r}: one of {', '.join(VERBS)}", file=sys.stderr)
        return 2
    try:
        VERBS[words[0]](words[1:])
    except UserError as error:
        print(f"resim {words[0]}: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0
    except OSError as error:  # a full disk, a folder that went away
        where = f"{error.filename}: " if error.filename else ""
        print(f"resim {words[0]}: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
