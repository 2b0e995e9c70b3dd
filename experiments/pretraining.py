"""The pre-trainings of a study: every method with every seed, resumed if interrupted."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from methods import LEVELS, SIZES, make_recipe
from stopping import until_stopped
from variants import apply_variant

from resim.errors import StoppedError
from resim.runs.config import RunConfig
from resim.training.pretrain import pretrain
from resim.views.folder import find_images

CHECKPOINTS = 5  # checkpoints of each run that are kept, for curves over the number of pairs


def pretrain_one(images: list[Path], out: Path, method: str, size: str, pairs: int, seed: int) -> None:
    """Begin or resume a pre-training.

    Raises:
        StoppedError: a signal stopped it.
    """
    recipe = make_recipe(method, SIZES[size], images=len(find_images(images)), pairs=pairs, seed=seed)
    folder = out / f"{method}-seed{seed}"
    run = RunConfig(
        out=folder, resume=(folder / "config.json").exists(), keep_every=max(1, recipe.optim.epochs // CHECKPOINTS),
        picture_every=max(1, recipe.optim.epochs // 2),
    )  # fmt: skip
    with apply_variant(method):
        result = pretrain(recipe, run, images)
    if not result.finished:
        raise StoppedError(f"stopped in {folder}")


def main() -> int:
    """Read the command line and run all pre-trainings; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, nargs="+", help="folders of images without labels")
    parser.add_argument("--out", type=Path, required=True, help="folder of the study")
    parser.add_argument("--methods", nargs="+", default=list(LEVELS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--pairs", type=int, default=50_000, help="view pairs of each run")
    options = parser.parse_args()
    return until_stopped(options.out, lambda: _pretrain_all(options))


def _pretrain_all(options: argparse.Namespace) -> None:
    for seed in options.seeds:
        for method in options.methods:
            pretrain_one(options.images, options.out, method, options.size, options.pairs, seed)


if __name__ == "__main__":
    sys.exit(main())
