"""One command for a study: pre-train, probe, tabulate. What is done already is not done again.

    python experiments/study.py IMAGES --labels TRAIN --test-labels VAL --out FOLDER --pairs 50000 --seeds 0 1

Ctrl+C or SIGTERM stops it at a step; the same command goes on there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from methods import LEVELS, SIZES
from pretraining import pretrain_one
from probing import probe_runs, read_labels
from records import Row, append_rows

from resim.errors import UserError


def main() -> None:
    """Read the command line and run what is not done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="+", help="folders of images without labels")
    parser.add_argument(
        "--labels", type=Path, required=True, help="labelled images to learn from, as resim probe's DATA"
    )
    parser.add_argument("--test-labels", type=Path, required=True, help="labelled images to test on")
    parser.add_argument("--classes", nargs="*", default=[], help="classes to keep beside the background; none: all")
    parser.add_argument("--most", type=int, default=500, help="labelled images of each set at the most")
    parser.add_argument("--out", type=Path, required=True, help="folder of the study")
    parser.add_argument(
        "--methods", nargs="+", default=list(LEVELS), help="-sgd behind a name: the published optimiser"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--pairs", type=int, default=50_000, help="view pairs of each run")
    options = parser.parse_args()
    labels = None
    for seed in options.seeds:
        for method in options.methods:
            try:
                finished = pretrain_one(options.images, options.out, method, options.size, options.pairs, seed)
            except UserError as error:  # a run that fails is a result too
                row = Row(method=method, seed=seed, pairs=0, probe="pre-training", status=str(error))
                append_rows(options.out / "results.csv", [row])
                continue
            if not finished:
                return
            labels = labels or read_labels(
                options.labels,
                options.test_labels,
                SIZES[options.size].image_size,
                most=options.most,
                classes=options.classes,
            )
            probe_runs([options.out / f"{method}-seed{seed}"], options.out, labels)


if __name__ == "__main__":
    main()
