"""Files of weights, opened without running any code in them: PyTorch's, pickles of arrays, safetensors, shards."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from resim.errors import UserError
from resim.exchange.files.modules import replace_modules
from resim.exchange.files.pickle_values import Named, NumberArray, PassedOver, SavedTensor, is_tensor
from resim.exchange.files.pickles import Rules, read_pickle
from resim.exchange.files.torch_files import LEGACY, read_torch, with_tensors
from resim.exchange.sources import is_untrained, locate
from resim.reading import read_json

_NOT_WEIGHTS = {
    b"version https://git-lfs": "a Git LFS pointer: fetch the file itself with git lfs pull",
    b"<!DOCTYPE": "a web page, not the file itself: download it again",
    b"<html": "a web page, not the file itself: download it again",
    b"\x89HDF": "an HDF5 file: save the weights with torch.save or as safetensors",
    b"\x1f\x8b": "compressed with gzip: unpack it first",
    b"BZh": "compressed with bzip2: unpack it first",
    b"\xfd7zXZ": "compressed with xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it first",
    b"\x93NUMPY": "a file of NumPy's (.npy): save a state_dict",
    b"\x08\x08\x12\x07pytorch": "an ONNX file, which is written and never read: name the checkpoint it was made from",
}
_IN_FOLDERS = (
    "checkpoints/last.pt", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)  # fmt: skip
_INDEX = ".index.json"


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The content of a file: plain data with tensors and arrays."""

    path: Path
    """The file; of a folder, the file of weights in it."""
    size: int
    """Bytes of the file, or of all shards."""
    form: str
    """torch, pickle or safetensors."""
    data: Mapping[str, Any]
    metadata: Mapping[str, str]
    """Of a safetensors file."""
    origin: str | None = None
    """The source of the weights, where they were named by it (`torchvision:NAME`)."""
    passed_over: tuple[str, ...] = ()
    """Classes and functions whose objects were not read."""


def read_contents(path: str | Path) -> Contents:
    """Open a file of weights with all its shards, or the one in a run's or hub folder, or `torchvision:NAME`.

    Raises:
        UserError: it cannot be read, is damaged, is another kind of file, or names commands to be run.
    """
    if is_untrained(path):
        raise UserError(f"{path}: is an untrained network, which has no file: name a file of weights")
    place, origin = locate(path)
    path = _file_of(place)
    contents = _read_shards(path) if path.name.endswith(_INDEX) else _read_file(path)
    return replace(contents, origin=origin)


def tensors_in(contents: Contents, entries: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """The entries that are tensors, and the names of those that are not.

    Floating-point numbers of less than 32 bits are converted to float32.

    Raises:
        UserError: a tensor that is larger than the file, sparse, quantised, without content or of a type that PyTorch
            cannot convert.
    """
    tensors: dict[str, Tensor] = {}
    others: list[str] = []
    for name, value in entries.items():
        if not is_tensor(value):
            others.append(name)
            continue
        if isinstance(value, PassedOver):
            raise UserError(f"{contents.path}: {name}: is sparse, quantised or without content: save dense weights")
        if isinstance(value, (NumberArray, SavedTensor)):
            try:
                value = value.tensor()
            except pickle.UnpicklingError as error:
                raise UserError(f"{contents.path}: {name}: {error}") from None
        if value.numel() * value.element_size() > contents.size:
            raise UserError(f"{contents.path}: {name}: claims {tuple(value.shape)} in a file of {contents.size} bytes")
        try:
            if value.is_floating_point() and value.element_size() < 4:
                value = value.float()
            tensors[name] = value.detach().contiguous()
        except RuntimeError:  # PyTorch has types that it cannot convert, such as two numbers in a byte
            raise UserError(f"{contents.path}: {name}: cannot be read as {value.dtype}: save it as float32") from None
    return tensors, others


def _read_file(path: Path) -> Contents:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(264)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:  # a NUL or half a character
        raise UserError(f"{path!a}: is no name of a file") from None
    if not head:
        raise UserError(f"{path}: is empty (0 bytes)")
    for start, description in _NOT_WEIGHTS.items():
        if head.lstrip().lower().startswith(start.lower()):
            raise UserError(f"{path}: is {description}")
    if head[257:262] == b"ustar":
        raise UserError(f"{path}: is a tar archive: unpack it, and name a file of weights in it")
    form = _form(path, head)
    metadata: dict[str, str] = {}
    rules = Rules()
    try:
        if form == "safetensors":
            data, metadata = _read_safetensors(path)
        elif form == "pickle":
            data = read_pickle(path.read_bytes(), with_tensors(rules, path))
        else:
            data = read_torch(path.read_bytes(), path, rules)
        data = _decode_keys(replace_modules(data))
    except UserError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"{path}: {_describe_error(error, size)}") from None
    if not isinstance(data, Mapping) or not all(isinstance(name, str) for name in data):
        kind = "Tensor" if isinstance(data, SavedTensor) else type(data).__name__
        kind = data.kind if isinstance(data, PassedOver) else data.full if isinstance(data, Named) else kind
        raise UserError(f"{path}: contains no named weights (a {kind}): save a state_dict")
    return Contents(path=path, size=size, form=form, data=data, metadata=metadata, passed_over=tuple(rules.passed_over))


def _decode_keys(data: Any) -> Any:
    """The same data with text keys, which a pickle of Python 2 contains as bytes, in the dictionary and its values."""
    if not isinstance(data, dict):
        return data
    names = [name.decode("ascii") if isinstance(name, bytes) and name.isascii() else name for name in data]
    values = [_decode_keys(value) if _has_bytes(value) else value for value in data.values()]
    return dict(zip(names, values, strict=True)) if len({*names}) == len(names) else data


def _has_bytes(value: object) -> bool:
    return isinstance(value, dict) and any(isinstance(name, bytes) for name in value)


def _read_shards(path: Path) -> Contents:
    """The files that an index names, as the content of one."""
    try:
        index = read_json(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: is no JSON ({error})") from None
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise UserError(f"{path}: is no index of shards: it has no weight_map from names to files")
    parts: list[Contents] = []
    for name in dict.fromkeys(shards.values()):
        if Path(name).name != name or name.endswith(_INDEX):
            raise UserError(f"{path}: names the shard {name!r}: shards must be in the folder of the index")
        parts.append(_read_file(path.parent / name))
    data: dict[str, Any] = {}
    for name, file in shards.items():
        part = next(part for part in parts if part.path.name == file)
        if name not in part.data:
            raise UserError(f"{path}: states that {name} is in {file}, which has no such entry")
        data[name] = part.data[name]
    passed_over = tuple(dict.fromkeys(kind for part in parts for kind in part.passed_over))
    size = sum(part.size for part in parts)
    return replace(parts[0], path=path, size=size, data=data, passed_over=passed_over)


def _file_of(path: Path) -> Path:
    """The file of weights in a run's folder or a hub folder."""
    if not path.is_dir():
        return path
    for name in _IN_FOLDERS:
        if (path / name).is_file():
            return path / name
    if (path / ".metadata").is_file():
        raise UserError(
            f"{path}: is a distributed checkpoint: python -m torch.distributed.checkpoint.format_utils dcp_to_torch "
            f"{path} FILE makes one file of it"
        )
    raise UserError(f"{path}: is a folder without {_IN_FOLDERS[0]} or {_IN_FOLDERS[1]}; {_remedy(path)}")


def _remedy(path: Path) -> str:
    """What to name instead of a folder without weights."""
    runs = sorted(str(file.parent.parent) for file in path.glob(f"*/{_IN_FOLDERS[0]}"))
    if runs:
        return f"name one of its runs: {', '.join(runs[:5])}{', ...' if runs[5:] else ''}"
    others = sorted(str(file) for file in (path / "checkpoints").glob("*.pt"))
    if others:
        return f"name one of its checkpoints: {', '.join(others[:5])}{', ...' if others[5:] else ''}"
    if (path / "config.json").is_file() and (path / "metrics.jsonl").is_file():
        return "the run stopped before its first checkpoint: repeat its command with --resume auto"
    return "name a file of weights"


def _form(path: Path, head: bytes) -> str:
    if head.startswith((b"PK\x03\x04", LEGACY)):
        return "torch"
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        return "safetensors"
    if head[0] == 0x80 or head[:1] in (b"(", b"}") or path.suffix == ".pkl":  # protocols 0 and 1 begin with a bracket
        return "pickle"
    if path.suffix == ".onnx":
        raise UserError(f"{path}: ONNX files are written, not read: name the checkpoint it was made from")
    if head.isascii() and all(letter.isprintable() or letter.isspace() for letter in head.decode()):
        raise UserError(f"{path}: is a text file, not a file of weights; it begins with {head.decode().strip()[:60]!r}")
    return "torch"


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt", device="cpu") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def _describe_error(error: Exception, size: int) -> str:
    """Why a file was not read, in one line."""
    text = str(error)
    if isinstance(error, pickle.UnpicklingError):
        when = " when it is loaded" if re.match(r"it imports \S+$", text) else ""
        return f"refused: {text}{when}; only tensors, arrays and plain data are read: save a state_dict"
    if isinstance(error, zipfile.BadZipFile):
        text = "a truncated zip archive: download or copy the file again"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    expected = "safetensors file" if isinstance(error, SafetensorError) else "file of weights"
    return f"damaged, or no {expected} ({size} bytes; {lines[0][:120] if lines else type(error).__name__})"
