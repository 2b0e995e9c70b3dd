"""`resim.load`: an encoder from a file, a folder or the Hugging Face hub; `resim.load_published`: a complete model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from resim.errors import UserError
from resim.exchange.features import build_encoder
from resim.exchange.names import from_published_layout
from resim.exchange.networks.architecture import list_mismatches
from resim.exchange.networks.recognise import recognise
from resim.exchange.weights import read_weights
from resim.model.encoder import Encoder
from resim.optional_packages import import_optional

FILES = frozenset({".pt", ".pth", ".pkl", ".safetensors", ".onnx", ".tar"})
"""Endings of files; a name on the hub may have any other dot in it, such as user/name-1.0."""


def load(source: str | Path, *, revision: str | None = None) -> Encoder:
    """Load a pre-trained encoder on the CPU, in evaluation mode.

    `load(...)(images)` gives the global vectors and the levels' maps, `load(...).backbone(images)` C3, C4 and C5.

    Args:
        source: any file or folder that `read_weights` reads, `torchvision:NAME`, or "user/name" on the hub, from which
            only model.safetensors is downloaded (`HF_ENDPOINT` and `HF_TOKEN` apply).
        revision: branch, tag or commit on the hub.

    Raises:
        UserError: no such file or repository, or weights that cannot be read.
    """
    return build_encoder(read_weights(find_file(source, revision)))


def load_published(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load all entries of a published ReSim-FPN checkpoint's `state_dict` into a `ReSim` of its recipe.

    Args:
        model: the network.
        state: names with or without `module.`.

    Raises:
        ValueError: other names than the published ones; an entry is missing, left over or of another shape. The model
            is then unchanged.
    """
    form = recognise(state)
    if form.name != "published":
        raise ValueError("the state_dict has none of the published names, such as encoder_q.layer1.0.conv1.weight")
    names = form.model_names()
    tensors = {ours: from_published_layout(ours, state[theirs]) for theirs, ours in names.items()}
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    mismatches = list_mismatches(expected, tensors, [name for name in state if names.get(name) not in expected])
    if mismatches:
        raise ValueError(f"the state_dict does not fit this model: {mismatches}")
    model.load_state_dict(tensors)


def find_file(source: str | Path, revision: str | None = None) -> Path:
    """The path itself, or model.safetensors of the repository on the hub that it names.

    Raises:
        UserError: no such repository.
    """
    path = Path(source)
    if not path.exists() and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(source)) and path.suffix not in FILES:
        return _download_from_hub(str(source), revision)
    return path


def _download_from_hub(name: str, revision: str | None) -> Path:
    hub = import_optional(
        "huggingface_hub", f"{name}: no such file here; to fetch it from the hub: pip install '.[hub]' in resim's clone"
    )
    try:
        return Path(hub.hf_hub_download(name, "model.safetensors", revision=revision))
    except Exception as error:  # of many kinds: no network, no such name, no access
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{name}: no such file here, and it cannot be downloaded from the hub ({lines[0][:160]})"
        ) from None
