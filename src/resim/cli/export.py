"""Write weights for torchvision, Detectron2, timm, the hub or ONNX, verified there against our features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from resim.exchange.targets import FpnNorm, Target


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `resim export`."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A checkpoint, a run's folder (of detect train too), or any file that `resim import` reads."""
    to: Target
    """Format; torchvision-detection, safetensors and hub take a detector run whole, the others its backbone."""
    out: Path | None = None
    """File to write (a folder with --to hub); default: RECIPE-FORMAT in the working folder."""
    fpn_norm: FpnNorm = "auto"
    """BatchNorm after FPN convolutions: keep as trained, plain (folded away), batchnorm (put in); auto: batchnorm for
    detectron2, else keep. Features stay the same."""
    licence: str | None = None
    """Licence of the weights, such as Apache-2.0, for the metadata and the card, where their file proves none."""
    probes: Path | None = None
    """JSON of probe results for the model card; default: what the run's probe.json says of this file."""


def run(options: Options) -> None:
    """Export, and print what was written.

    Raises:
        UserError: as `export`.
    """
    from resim.cli.entries import export_lines
    from resim.detection.export_any import export

    exported = export(
        options.checkpoint, options.to, options.out, fpn_norm=options.fpn_norm, licence=options.licence,
        probes=options.probes,
    )  # fmt: skip
    for line in export_lines(exported):
        print(line)
