"""The whole story in ten minutes: pre-train ReSim and MoCo v2, probe both, train detectors, report."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from resim.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Options:
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


def run(options: Options) -> None:
    """Run the demo; the minutes count from here.

    Raises:
        UserError: as `demo`; images that do not exist.
    """
    began = time.perf_counter()
    if options.data is not None and not options.data.exists():
        raise UserError(f"--data {options.data}: there is no such folder or file")

    from resim.demo.story import demo

    demo(options.data, options.out, minutes=options.minutes, pairs=options.pairs, seed=options.seed, began=began)
