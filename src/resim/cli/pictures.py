"""The verbs that show: `resim similarity`, `resim explore`, `resim report`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from resim.cli.options import read_options
from resim.errors import UserError

Images = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE [IMAGE ...]")]
MOST_IMAGES = 12


@dataclass(frozen=True, kw_only=True)
class SimilarityOptions:
    """Options of `resim similarity`."""

    images: Images
    """The image that holds the region, then others in which it is looked for."""
    checkpoint: Annotated[tuple[str, ...], tyro.conf.arg(metavar="CKPT [CKPT ...]")]
    """Weights, side by side: random, a run's folder, a file of weights of any program that resim import reads, or
    torchvision:NAME such as torchvision:resnet50 (ImageNet's weights, downloaded once). random is the untrained network
    of the first one's recipe, random:RECIPE that of another."""
    point: Annotated[str | None, tyro.conf.arg(metavar="X,Y")] = None
    """X,Y of the first image: the region is the place there, px."""
    box: Annotated[str | None, tyro.conf.arg(metavar="X0,Y0,X1,Y1")] = None
    """X0,Y0,X1,Y1 of the first image: the region is this box, pooled precisely, px."""
    levels: Annotated[tuple[str, ...], tyro.conf.arg(metavar="LEVEL [LEVEL ...]")] = ()
    """Feature maps such as P4 P3 C4; default: those that the region loss has seen."""
    out: Path = Path("similarity")
    """Folder of the pictures: heat.png, matches.png, pca.png."""
    max_side: int = 1024
    """Images whose longer side is above this are made smaller before they are encoded, px."""
    pairs: int = 12
    """Mutual nearest regions that are drawn, at most."""


@dataclass(frozen=True, kw_only=True)
class ExploreOptions:
    """Options of `resim explore`."""

    checkpoints: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CKPT [CKPT ...]")]
    """Weights, side by side: random, a run's folder, a file of weights of any program that resim import reads, or
    torchvision:NAME such as torchvision:resnet50 (ImageNet's weights, downloaded once). random is the untrained network
    of the first one's recipe, random:RECIPE that of another."""
    images: Path
    """Folder of images; nothing but its images is shown (links in it are followed)."""
    host: str = "127.0.0.1"
    """Address to listen at; the default is reached from this machine alone."""
    port: int = 7860
    """Port to listen at."""
    max_side: int = 640
    """Images whose longer side is above this are made smaller before they are encoded, px."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Options of `resim report`."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Folders of pre-trainings, fine-tunings and comparisons."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("report.html")
    """The page to write: one file, below 5 MB, that needs nothing else."""
    images: tuple[Path, ...] = ()
    """Folders or files for the similarity maps; default: the images that the first pre-training saw."""
    seed: int = 0
    """Seed by which images are drawn."""


def similarity_verb(argv: Sequence[str]) -> None:
    """Show where a region is found again, which regions match between images, and what a feature map holds."""
    options = read_options(SimilarityOptions, argv, "similarity", similarity_verb.__doc__ or "")
    if options.point is not None and options.box is not None:
        raise UserError("--point and --box: name one of them, they are the same region")
    numbers = {"--point": (options.point, 2), "--box": (options.box, 4)}
    asked = [_numbers(name, text, count) for name, (text, count) in numbers.items() if text is not None]
    for name, value, least in (("--max-side", options.max_side, 32), ("--pairs", options.pairs, 1)):
        if value < least:
            raise UserError(f"{name} {value}: must be at least {least}")

    from resim.similarity.sheets import write_similarity
    from resim.views.folder import find_images

    paths = find_images(options.images)
    if note := paths.note():
        print(note)
    if len(paths) > MOST_IMAGES:
        raise UserError(f"{len(paths)} images are more than a sheet can show: name at most {MOST_IMAGES}")
    written = write_similarity(
        list(paths),
        options.checkpoint,
        options.out,
        region=asked[0] if asked else None,
        levels=options.levels,
        max_side=options.max_side,
        pairs=options.pairs,
    )
    for path in written:
        print(path)


def explore_verb(argv: Sequence[str]) -> None:
    """Explore similarity in a browser: click a place, see where the network finds it again."""
    options = read_options(ExploreOptions, argv, "explore", explore_verb.__doc__ or "")
    if options.max_side < 32:
        raise UserError(f"--max-side {options.max_side}: must be at least 32")
    if not 0 < options.port < 65536:
        raise UserError(f"--port {options.port}: must be from 1 to 65535")
    if not options.images.is_dir():
        raise UserError(f"--images {options.images}: is no folder")

    from resim.exchange.encoders import load_encoders
    from resim.similarity.explorer import Explorer
    from resim.similarity.explorer_page import serve

    explorer = Explorer(options.images, load_encoders(options.checkpoints), options.max_side)
    if explorer.note:
        print(explorer.note)
    serve(explorer, host=options.host, port=options.port)


def report_verb(argv: Sequence[str]) -> None:
    """Write one page about runs: what ran, curves, windows, similarity maps, probes, detections."""
    options = read_options(ReportOptions, argv, "report", report_verb.__doc__ or "")
    if options.out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {options.out}: must end in .html")
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: must not be negative")

    from resim.report.report import report

    print(report(options.runs, options.out, images=options.images, seed=options.seed))


def _numbers(option: str, text: str, count: int) -> tuple[float, ...]:
    try:
        values = tuple(float(word) for word in text.split(","))
    except ValueError:
        values = ()
    if len(values) != count or not all(abs(value) < 1e9 for value in values):
        shape = "X,Y" if count == 2 else "X0,Y0,X1,Y1"
        raise UserError(f"{option} {text}: must be {shape}, {count} numbers of px with commas between them")
    return values
