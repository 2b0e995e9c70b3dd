"""Write one page about runs: what ran, curves, windows, similarity maps, probes, detections."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from resim.errors import UserError

WHEN_STOPPED = "no page is written: the same command starts from the beginning"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `resim report`."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Folders of pre-trainings, fine-tunings and comparisons."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("report.html")
    """The page to write: one file, below 5 MB, that needs nothing else."""
    images: tuple[Path, ...] = ()
    """Folders or files for the similarity maps; default: the images that the first pre-training saw."""
    seed: int = 0
    """Seed by which images are drawn."""


def run(options: Options) -> None:
    """Write the page and print its path.

    Raises:
        UserError: as `report`; options that cannot work.
    """
    if options.out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {options.out}: must end in .html")
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: must not be negative")

    from resim.report.report import report

    print(report(options.runs, options.out, images=options.images, seed=options.seed))
