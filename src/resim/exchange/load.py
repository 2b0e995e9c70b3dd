"""`resim.load`: an encoder from a file, a folder, or a name on the Hugging Face hub."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from resim.errors import UserError
from resim.exchange.features import build_encoder
from resim.exchange.weights import read_weights
from resim.model.encoder import Encoder

FILES = frozenset({".pt", ".pth", ".pkl", ".safetensors", ".onnx", ".tar"})
"""Endings of files; a name on the hub may have any other dot in it, such as user/name-1.0."""


def load(source: str | Path, *, revision: str | None = None) -> Encoder:
    """A pre-trained encoder on the CPU, in evaluation mode.

    `load(...)(images)` gives the global vectors and the levels' maps, `load(...).backbone(images)` C3, C4 and C5.

    Args:
        source: any file or folder that `read_weights` reads, `torchvision:NAME`, or "user/name" on the hub, of which
            model.safetensors alone is fetched (`HF_ENDPOINT` and `HF_TOKEN` are heeded).
        revision: branch, tag or commit on the hub.

    Raises:
        UserError: no such file or repository, or weights that cannot be read.
    """
    return build_encoder(read_weights(find_file(source, revision)))


def find_file(source: str | Path, revision: str | None = None) -> Path:
    """The path that `source` is, or model.safetensors of the hub's repository that it names.

    Raises:
        UserError: no such repository.
    """
    path = Path(source)
    if not path.exists() and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(source)) and path.suffix not in FILES:
        return _from_hub(str(source), revision)
    return path


def _from_hub(name: str, revision: str | None) -> Path:
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ModuleNotFoundError:
        raise UserError(
            f"{name}: no such file here; to fetch it from the hub: pip install '.[hub]' in resim's clone"
        ) from None
    try:
        return Path(hub.hf_hub_download(name, "model.safetensors", revision=revision))
    except Exception as error:  # of many kinds: no network, no such name, no access
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{name}: no such file here, and the hub does not give it ({lines[0][:160]})") from None
