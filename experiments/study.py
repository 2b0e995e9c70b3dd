"""One command for a study: pre-train, probe, train detectors. Finished parts are skipped.

    python experiments/study.py IMAGES --labels MASKS --detect BOXES --out FOLDER --pairs 50000 --seeds 0 1 2

Ctrl+C or SIGTERM stops it after a step with exit code 75; the same command resumes it.
experiments/tables.py prints the results.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

from detecting import REGIMES, Labels, detect_one, read_detector_labels
from methods import LEVELS, SIZES
from pretraining import pretrain_one
from probing import probe_runs, read_labels
from records import Row, append_rows, read_rows
from stopping import until_stopped

from resim.errors import UserError, WriteError
from resim.probes.label_maps import LabelMaps


def main() -> int:
    """Read the command line and run all parts that are not finished; return the exit code."""
    options = _parser().parse_args()
    return until_stopped(options.out, lambda: _run_all(options))


def _run_all(options: argparse.Namespace) -> None:
    size = SIZES[options.size]

    @cache
    def label_maps() -> tuple[LabelMaps, LabelMaps]:
        return read_labels(
            options.labels, options.test_labels, size.image_size, most=options.most, classes=options.classes
        )

    @cache
    def detector_labels() -> Labels:
        return read_detector_labels(
            options.detect, options.test_detect, options.detect_images, options.test_detect_images,
            classes=options.classes, merge=options.merge, most=options.most_detect,
        )  # fmt: skip

    if options.detect:
        detector_labels()  # labels that cannot be read are reported before hours of pre-training
    for seed in options.seeds:
        runs = {method: options.out / f"{method}-seed{seed}" for method in options.methods}
        for method, run in list(runs.items()):
            try:
                pretrain_one(options.images, options.out, method, options.size, options.pairs, seed)
            except WriteError:
                raise
            except UserError as error:  # a failed run is a result too
                _record_failure(options.out, method, seed, str(error))
                del runs[method]
                continue
            with_curves = options.curves and seed == options.seeds[0]  # of one seed: to probe all checkpoints is slow
            probe_runs([run], options.out, label_maps(), only_last=not with_curves)
        if options.detect:
            _detect(runs, options, seed, detector_labels)


def _detect(runs: dict[str, Path], options: argparse.Namespace, seed: int, labels: Callable[[], Labels]) -> None:
    """Train the detectors of a seed, one regime after another."""
    for name in options.regimes:
        detect_one(runs, options.out, labels(), SIZES[options.size], name, steps=options.detect_steps, seed=seed)


def _record_failure(out: Path, method: str, seed: int, error: str) -> None:
    row = Row(method=method, seed=seed, pairs=0, probe="pre-training", status=error)
    if row not in list(read_rows(out / "results.csv")):
        append_rows(out / "results.csv", [row])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("images", type=Path, nargs="+", help="folders of images without labels")
    add("--labels", type=Path, required=True, help="training images with masks, in any form that resim probe reads")
    add("--test-labels", type=Path, help="test images with masks; default: a fifth of --labels")
    add("--classes", nargs="*", default=[], help="classes to keep in addition to the background; default: all")
    add("--most", type=int, default=500, help="maximum number of images with masks of each set")
    add(
        "--detect",
        type=Path,
        help="images with boxes, in any form that resim detect train reads; default: no detectors",
    )
    add("--test-detect", type=Path, help="test images with boxes; default: a fifth of --detect")
    add("--detect-images", type=Path, help="folder of the images of --detect, if they are not next to it")
    add("--test-detect-images", type=Path, help="folder of the images of --test-detect, if they are not next to it")
    add("--merge", default="", help="name of one class into which all are merged")
    add("--most-detect", type=int, default=0, help="maximum number of images with boxes of each set; 0: all")
    add("--detect-steps", type=int, default=300, help="training steps of each detector, of 8 images")
    add("--regimes", nargs="+", choices=REGIMES, default=["frozen", "frozen+fpn", "tuned-10%", "tuned-100%"])
    add("--out", type=Path, required=True, help="folder of the study")
    add(
        "--methods",
        nargs="+",
        default=list(LEVELS),
        help="names as methods.py has them, -sgd and +SETTING=VALUE too",
    )
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add(
        "--curves", action=argparse.BooleanOptionalAction, default=True, help="probe all kept checkpoints of one seed"
    )  # fmt: skip
    add("--size", choices=SIZES, default="cpu")
    add("--pairs", type=int, default=50_000, help="view pairs of each run")
    return parser


if __name__ == "__main__":
    sys.exit(main())
