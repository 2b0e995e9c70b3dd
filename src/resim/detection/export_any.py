"""Any checkpoint written for another program: a detector whole where the target takes one, else its encoder."""

from __future__ import annotations

from pathlib import Path

from resim.detection.checkpoint import holds_detector
from resim.errors import UserError
from resim.exchange.export import Exported
from resim.exchange.export import export as export_encoder
from resim.exchange.targets import WHOLE, FpnNorm, Target


def export(
    checkpoint: str | Path,
    to: Target,
    out: Path | None = None,
    *,
    fpn_norm: FpnNorm = "auto",
    licence: str | None = None,
    probes: Path | None = None,
) -> Exported:
    """Write a checkpoint for another program, verified there before anything is moved into place.

    A detector of ours is written whole for `torchvision-detection`, `safetensors` and `hub`. Of everything else, and
    for the other targets, the query encoder or the detector's backbone is written.

    Args:
        checkpoint: a run's folder, a checkpoint, or any file that `read_weights` reads.
        to: torchvision, torchvision-detection, detectron2, timm, safetensors, hub or onnx.
        out: file, or folder of `hub`; default: RECIPE-TARGET.ENDING in the working folder.
        fpn_norm: BatchNorm after the FPN's convolutions: as trained (`keep`), folded away (`plain`) or put in
            (`batchnorm`), with the same features; `auto` is `batchnorm` for Detectron2, else `keep`.
        licence: of the weights, where their file proves none.
        probes: JSON of probe results for the model card of an encoder; None: the run's probe.json, where it is of this
            file.

    Returns:
        What was written, what was left out, and the largest differences from our features (float32).

    Raises:
        UserError: a file, an option or a place that cannot be used, or features or detections that differ; nothing is
            written.
    """
    if to not in WHOLE or not holds_detector(checkpoint):
        return export_encoder(checkpoint, to, out, fpn_norm=fpn_norm, licence=licence, probes=probes)
    if probes is not None:
        raise UserError(f"--probes {probes}: goes with pre-trained networks; {checkpoint} is a detector, leave it out")

    from resim.detection.export import export_detector  # slow to import: where there is a detector

    return export_detector(checkpoint, to, out, fpn_norm=fpn_norm, licence=licence)
