"""The report of runs: a verdict, the runs, training curves, windows, similarity maps, probes, detections.

A section shows what the folders of the runs contain; a section for which there is nothing is omitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from resim.report.curves_section import curves
from resim.report.detection_section import detection
from resim.report.page import WIDE_PX, Part, Picture, Section, write_report
from resim.report.probes_section import probes
from resim.report.run_files import RunFiles, read_picture, read_runs
from resim.report.runs_section import configurations, what_ran
from resim.report.similarity_section import similarity
from resim.report.verdict_section import verdict_parts


def report(runs: Sequence[Path], out: Path, *, images: Sequence[Path] = (), seed: int = 0) -> Path:
    """Write one page about some runs.

    Args:
        runs: folders of pre-trainings, fine-tunings and comparisons.
        out: the .html file.
        images: folders or files for the similarity maps; empty: the images on which the first pre-training was trained,
            if they still exist.
        seed: of the choice of these images.

    Returns:
        `out`.

    Raises:
        UserError: a folder contains no run, a file is damaged, images cannot be read, or the page would exceed 5 MB.
    """
    files = read_runs(runs)
    title = files[0].name if len(files) == 1 else f"{len(files)} runs"
    sections = [
        Section(title="Verdict", parts=tuple(verdict_parts(files))),
        Section(title="Runs", parts=(*what_ran(files), *configurations(files))),
        Section(title="Training curves", parts=tuple(curves(files))),
        Section(title="Corresponding windows", parts=tuple(_windows(files))),
        Section(title="Similarity before and after pre-training", parts=tuple(similarity(files, images, seed))),
        Section(title="Probes", parts=tuple(probes(files))),
        Section(title="Detection", parts=tuple(detection(files))),
    ]
    return write_report(out, f"resim: {title}", sections)


def _windows(runs: Sequence[RunFiles]) -> list[Part]:
    """The last picture of view pairs of each pre-training."""
    parts: list[Part] = []
    for run in runs:
        paths = [path for path in run.pictures if path.stem.startswith("epoch_")]
        if run.kind == "pretrain" and paths:
            epoch = paths[-1].stem.replace("_", " ")
            caption = f"{run.name}, {epoch}: two views of each image, as the loss compares them"
            parts.append(Picture(picture=read_picture(paths[-1]), caption=caption, min_px=WIDE_PX))
    return parts
