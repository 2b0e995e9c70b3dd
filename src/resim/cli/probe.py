"""Measure features: nearest neighbours, linear probe, segmentation, retrieval, region correspondence, health."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from resim.errors import UserError
from resim.probes.config import LabelOptions, ProbeConfig

WHEN_STOPPED = "no scores are written: the same command starts from the beginning"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `resim probe`."""

    words: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="NETWORK [NETWORK ...] DATA", name="words")
    ]
    """Networks, then the images. A network is random, a run's folder, a file of weights of any program that resim
    import reads, or torchvision:NAME such as torchvision:resnet50 (ImageNet's weights, downloaded once); random is the
    untrained network of the first one's recipe, random:RECIPE that of another. Images are a folder (class folders give
    the classes), a CSV file of path,label, a tar, a folder or a quoted pattern of tars, or a .txt file of paths; for
    segmentation and retrieval a COCO file, a VOC folder, or a folder with label maps."""
    test: str | None = None
    """Images to test on; default: val or test next to train in DATA, else a fifth of each class, chosen at random."""
    unlabelled: bool = False
    """Use no classes: correspondence and health alone."""
    out: Path | None = None
    """JSON file to write; default: probe.json in the first checkpoint's run folder, or next to it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: a GPU if there is one."""
    precision: Literal["auto", "float32", "bf16"] = "float32"
    """bf16 runs convolutions in bfloat16; auto: bf16 where it is faster. Features are compared in float32."""
    label_maps: LabelOptions
    config: ProbeConfig


def run(options: Options) -> None:
    """Measure the networks, print the tables, write the file.

    Raises:
        UserError: as `probe`; no network or no data.
    """
    if len(options.words) < 2:
        raise UserError("NETWORK and DATA are needed: resim probe CHECKPOINT DIR")
    *networks, data = options.words

    from resim.probes.run import choose_device, probe
    from resim.training.precision import choose_precision

    device = choose_device(options.device)
    probe(
        networks, data, options.test, config=options.config, label_maps=options.label_maps,
        unlabelled=options.unlabelled, out=options.out, device=device,
        precision=choose_precision(options.precision, device),
    )  # fmt: skip
