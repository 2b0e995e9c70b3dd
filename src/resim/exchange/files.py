"""Files of weights, opened without running what is in them: PyTorch's, pickles of arrays, safetensors."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from resim.errors import UserError
from resim.exchange.pickles import NUMPY, NumberArray, read_pickle
from resim.exchange.sources import is_untrained, locate

_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number that torch.save wrote before 1.6
_NOT_WEIGHTS = {
    b"version https://git-lfs": "a Git LFS pointer: fetch the file itself with git lfs pull",
    b"<!DOCTYPE": "a web page, not the file itself: download it again",
    b"<html": "a web page, not the file itself: download it again",
    b"\x89HDF": "an HDF5 file: save the weights with torch.save or as safetensors",
}


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A file's content: plain data with tensors and `NumberArray`s in it."""

    path: Path
    """The file, found in the folder where a folder was named."""
    size: int
    """Bytes of the file."""
    form: str
    """torch, pickle or safetensors."""
    data: Mapping[str, Any]
    metadata: Mapping[str, str]
    """Of a safetensors file."""
    origin: str | None = None
    """Where the weights come from, where the name by which the file was called says so."""


def read_contents(path: str | Path) -> Contents:
    """Open a file of weights, or the one in a run's folder or a hub folder, or torchvision's own (`torchvision:NAME`).

    Raises:
        UserError: it cannot be read, is damaged, is no such file, or wants code to be run.
    """
    if is_untrained(path):
        raise UserError(f"{path}: is an untrained network, of which there is no file: name a file of weights")
    place, origin = locate(path)
    path = _file_of(place)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if not head:
        raise UserError(f"{path}: is empty (0 bytes)")
    for start, what in _NOT_WEIGHTS.items():
        if head.lower().startswith(start.lower()):
            raise UserError(f"{path}: is {what}")
    form = _form(path, head)
    metadata: dict[str, str] = {}
    try:
        if form == "safetensors":
            data, metadata = _read_safetensors(path)
        elif form == "pickle":
            data = read_pickle(path.read_bytes())
        else:
            data = _read_torch(path, head)
    except UserError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"{path}: {_told(error, size)}") from None
    if not isinstance(data, Mapping) or not all(isinstance(name, str) for name in data):
        raise UserError(f"{path}: holds no named weights (a {type(data).__name__}); save a state_dict")
    return Contents(path=path, size=size, form=form, data=data, metadata=metadata, origin=origin)


def tensors_in(contents: Contents, entries: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """The entries that are tensors, and the names of those that are none.

    Numbers of less than 32 bits are widened to float32.

    Raises:
        UserError: a tensor that claims more than the file holds, or is sparse, quantised or without content.
    """
    tensors: dict[str, Tensor] = {}
    others: list[str] = []
    for name, value in entries.items():
        if isinstance(value, NumberArray):
            try:
                value = value.tensor()
            except pickle.UnpicklingError as error:
                raise UserError(f"{contents.path}: {name}: {error}") from None
        if not isinstance(value, Tensor):
            others.append(name)
            continue
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise UserError(f"{contents.path}: {name}: is sparse, quantised or without content; dense weights are read")
        if value.numel() * value.element_size() > contents.size:
            raise UserError(f"{contents.path}: {name}: claims {tuple(value.shape)} in a file of {contents.size} bytes")
        if value.is_floating_point() and value.element_size() < 4:
            value = value.float()
        tensors[name] = value.detach().contiguous()
    return tensors, others


def _file_of(path: Path) -> Path:
    """The file in a run's folder or a hub folder."""
    if not path.is_dir():
        return path
    for name in ("checkpoints/last.pt", "model.safetensors"):
        if (path / name).is_file():
            return path / name
    raise UserError(f"{path}: is a folder without checkpoints/last.pt or model.safetensors; name a file of weights")


def _form(path: Path, head: bytes) -> str:
    if head.startswith((b"PK\x03\x04", _LEGACY)):
        return "torch"
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        return "safetensors"
    if head[0] == 0x80 or path.suffix == ".pkl":
        return "pickle"
    if path.suffix == ".onnx":
        raise UserError(f"{path}: ONNX files are written, not read: name the checkpoint it was made from")
    return "torch"


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt", device="cpu") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def _read_torch(path: Path, head: bytes) -> Any:
    if head.startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
        if packed:  # torch.save never does it, and little can unpack to much
            raise UserError(f"{path}: {packed[0]} in it is compressed, as torch.save does not do; save it anew")
    allowed: list[Any] = [(stand_in, name) for name, stand_in in NUMPY.items()]
    with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how long it takes to check what will be refused
        return torch.load(path, map_location="cpu", weights_only=True)


def _told(error: Exception, size: int) -> str:
    """Why a file was not read, in a line."""
    text = str(error)
    wanted = re.search(r"GLOBAL (\S+)|it asks for (\S+)", text)
    if wanted:
        name = wanted[1] or wanted[2]
        return f"refused: it asks for {name} when it is read, and only tensors, arrays and plain data are read"
    reason = re.search(r"(?:^|WeightsUnpickler error:\s*)(it [^\n]+)", text)
    if isinstance(error, pickle.UnpicklingError) and reason:
        return f"refused: {reason[1].strip()}, and only tensors, arrays and plain data are read"
    text = text.partition("WeightsUnpickler error:")[2] or text
    if isinstance(error, SafetensorError):
        return f"damaged, or no safetensors file ({size} bytes; {text.splitlines()[0][:120]})"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"damaged, or no file of weights ({size} bytes; {lines[0][:120] if lines else type(error).__name__})"
