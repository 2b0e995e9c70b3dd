"""The feature maps as an ONNX graph with free batch and image sizes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from resim.exchange.features import Pyramid, build_encoder, probe_images
from resim.exchange.targets import Check, Written
from resim.exchange.weights import Weights
from resim.optional_packages import find_optional, import_optional

_SIZES = ((96, 128, 2), (75, 109, 1))
"""Height, width and number of the images on which a graph is verified; the second is no multiple of a stride."""


def write_onnx(weights: Weights, folder: Path, name: str, metadata: Mapping[str, str]) -> Written:
    """Write one file with the input `images` (N, 3, H, W) and an output for each map.

    It is verified by onnxruntime at two sizes.

    Raises:
        UserError: onnx or onnxscript is not installed.
    """
    onnx, _ = (
        import_optional(name, f"--to onnx needs {name}: pip install '.[onnx]' in resim's clone")
        for name in ("onnx", "onnxscript")
    )
    pyramid = Pyramid(build_encoder(weights)).eval()
    free = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                pyramid, (probe_images(),), dynamo=True, verbose=False,
                input_names=["images"], output_names=pyramid.names, dynamic_shapes=(free,),
            )  # fmt: skip
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    (folder / name).write_bytes(model.SerializeToString())
    return Written(
        files=(name,),
        target="onnxruntime",
        load=f"onnxruntime.InferenceSession({name!r}).run(None, {{'images': images}})",
        checks=_onnx_checks(folder / name, pyramid.names),
        left_out=tuple(key for key in weights.tensors if not key.startswith(("backbone.", "fpn."))),
    )


def _onnx_checks(path: Path, names: list[str]) -> tuple[Check, ...]:
    runtime = find_optional("onnxruntime")
    if runtime is None:
        return ()
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    checks = []
    for height, width, count in _SIZES:
        images = probe_images(height, width, count)
        maps = session.run(None, {"images": images.numpy()})
        checks.append(Check(images, dict(zip(names, map(torch.from_numpy, maps), strict=True))))
    return tuple(checks)
