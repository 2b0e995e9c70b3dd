"""Files of weights, opened without running any code in them: PyTorch's, pickles of arrays, safetensors, shards."""

from __future__ import annotations

import pickle
import re
import stat
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from resim.errors import UserError
from resim.exchange.files.foreign_files import describe_foreign, text_in
from resim.exchange.files.modules import replace_modules
from resim.exchange.files.paths import INDEX, file_of
from resim.exchange.files.pickle_values import Named, NumberArray, PassedOver, SavedTensor, UnreadTensor, is_tensor
from resim.exchange.files.pickles import Rules, read_pickle
from resim.exchange.files.torch_files import LEGACY, ZIP, read_torch, with_tensors
from resim.exchange.sources import is_untrained, locate
from resim.reading import read_json


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
    path = file_of(place)
    contents = _read_shards(path) if path.name.endswith(INDEX) else _read_file(path)
    return replace(contents, origin=origin)


def tensors_in(
    contents: Contents, entries: Mapping[str, Any], needed: Collection[str] | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """The entries that are tensors, and the names of those that are not.

    Floating-point numbers of less than 32 bits are converted to float32.

    Args:
        contents: of the file.
        entries: some of its entries.
        needed: names; another entry whose class of tensors is not read is no tensor. None: each is needed.

    Raises:
        UserError: a tensor that is larger than the file, sparse, quantised, without content or of a type that PyTorch
            cannot convert.
    """
    tensors: dict[str, Tensor] = {}
    others: list[str] = []
    for name, value in entries.items():
        is_optional = isinstance(value, PassedOver) and needed is not None and name not in needed
        if not is_tensor(value) or is_optional:
            others.append(name)
            continue
        if isinstance(value, UnreadTensor) and value.is_part:
            raise UserError(
                f"{contents.path}: {name}: is one process's part of a tensor ({value.kind.rpartition('.')[2]}): save a "
                "full state_dict (torch.distributed.checkpoint.state_dict, full_state_dict=True)"
            )
        if isinstance(value, UnreadTensor):
            raise UserError(f"{contents.path}: {name}: is a {value.kind}, which is not read: save dense weights")
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
        status = path.stat()
        size, is_regular = status.st_size, stat.S_ISREG(status.st_mode)
        head = b""
        if is_regular:
            with path.open("rb") as file:
                head = file.read(264)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:  # a NUL or half a character
        raise UserError(f"{path!a}: is no name of a file") from None
    if not is_regular:
        raise UserError(f"{path}: is a pipe or a device: write it to a file first")
    if not head:
        raise UserError(f"{path}: is empty (0 bytes)")
    foreign = describe_foreign(head)
    if foreign is not None:
        raise UserError(f"{path}: is {foreign}")
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
    named = _text_keys(data) if isinstance(data, Mapping) else None
    if named is None:
        kind = "Tensor" if isinstance(data, SavedTensor) else type(data).__name__
        kind = data.kind if isinstance(data, PassedOver) else data.full if isinstance(data, Named) else kind
        if kind.startswith("__torch__."):
            raise UserError(f"{path}: is frozen TorchScript, with its weights as constants: save a state_dict")
        raise UserError(f"{path}: contains no named weights (a {kind}): save a state_dict")
    passed_over = tuple(rules.passed_over)
    return Contents(path=path, size=size, form=form, data=named, metadata=metadata, passed_over=passed_over)


def _text_keys(data: Mapping[Any, Any]) -> Mapping[str, Any] | None:
    """The entries with text keys, and those with numbers as text; None if all keys of its tensors are numbers."""
    if all(isinstance(name, str) for name in data):
        return data
    if not any(isinstance(name, str) or isinstance(value, Mapping) for name, value in data.items()):
        return None
    return {str(name): value for name, value in data.items() if isinstance(name, (str, int))}


def _decode_keys(data: Any) -> Any:
    """The same data with text keys, which a pickle of Python 2 contains as bytes, in the dictionary and its values."""
    if not isinstance(data, dict) or not (_has_bytes(data) or any(map(_has_bytes, data.values()))):
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
        if Path(name).name != name or name.endswith(INDEX):
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


def _form(path: Path, head: bytes) -> str:
    if head.startswith(ZIP) or LEGACY in head[:40]:
        return "torch"
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        return "safetensors"
    if head[0] == 0x80 or head[:1] in (b"(", b"}") or path.suffix == ".pkl":  # protocols 0 and 1 begin with a bracket
        return "pickle"
    if path.suffix == ".onnx":
        raise UserError(f"{path}: ONNX files are written, not read: name the checkpoint it was made from")
    text = text_in(head)
    if text is not None:
        raise UserError(f"{path}: is a text file, not a file of weights; it begins with {text.strip()[:60]!r}")
    raise UserError(f"{path}: is no file of weights: it begins with the bytes {head[:8].hex(' ')}")


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
