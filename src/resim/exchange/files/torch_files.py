"""Files of torch.save, old and new, and of TorchScript, read without PyTorch's loader: no code in them is run."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from resim.errors import UserError
from resim.exchange.files.pickle_makers import DTYPES, MAKERS
from resim.exchange.files.pickle_values import Named, Storage
from resim.exchange.files.pickles import Rules, interpret
from resim.runs.archive import ZIP, check_archive, has_checksums

LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""At the beginning of files of torch.save before 1.6, after the protocol: the magic number."""

_MAGIC = 0x1950A86A20F9469CFC6C

_PACKED = {
    ".npy": "an archive of NumPy's (.npz)",
    "archive_format": "a program of torch.export",
    "serialized_exported_program.json": "a program of torch.export",
    ".h5": "a Keras archive",
    ".pth": "a zip archive of files",
    ".pt": "a zip archive of files",
    ".ckpt": "a zip archive of files",
    ".safetensors": "a zip archive of files",
}


def read_torch(data: bytes, path: Path, rules: Rules, depth: int = 0) -> Any:
    """The content of a file of torch.save or TorchScript, its tensors as `SavedTensor`.

    Args:
        data: the file's bytes.
        path: its name, for messages.
        rules: for its pickles; they count the objects that are passed over.
        depth: of a file within a file (a plain pickle of tensors contains one for each storage).

    Raises:
        UserError: damaged, compressed, or another kind of archive.
        pickle.UnpicklingError: as `read_pickle`.
        Exception: of many kinds, for a damaged file.
    """
    return _read_zip(data, path, rules, depth) if data.startswith(ZIP) else _read_legacy(data, path, rules, depth)


def with_tensors(rules: Rules, path: Path, depth: int = 0) -> Rules:
    """The same rules for a plain pickle of tensors, which contains each storage as a file of torch.save."""

    def load(data: Any) -> Any:
        if not isinstance(data, (bytes, bytearray)) or depth > 2:
            raise pickle.UnpicklingError("it contains a storage of another kind")
        return read_torch(bytes(data), path, rules, depth + 1)

    return replace(rules, makers={**MAKERS, "torch.storage._load_from_bytes": load})


def _read_zip(data: bytes, path: Path, rules: Rules, depth: int) -> Any:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        main = [entry.filename for entry in entries if entry.filename.split("/")[1:] == ["data.pkl"]]
        if not main:
            names = [entry.filename for entry in entries]
            kinds = (kind for end, kind in _PACKED.items() if any(name.endswith(end) for name in names))
            shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
            kind = next(kinds, "a zip archive")
            raise UserError(f"{path}: is {kind} ({shown}), not a file of torch.save: unpack it, and save a state_dict")
        root = main[0].removesuffix("data.pkl")
        code = (f"{root}code/", f"{root}extra/")  # of TorchScript, which are compressed and never read
        packed = [
            entry.filename
            for entry in entries
            if entry.compress_type != zipfile.ZIP_STORED and not entry.filename.startswith(code)
        ]
        if packed:  # torch.save never compresses, and a small member can unpack to a large one
            raise UserError(f"{path}: {packed[0]} in it is compressed, unlike files of torch.save: save it again")
        check_archive(io.BytesIO(data), path)
        if not has_checksums(entries):
            for entry in entries:
                setattr(entry, "CRC", None)  # noqa: B010 - zipfile then compares no checksum
        order = archive.read(f"{root}byteorder") if f"{root}byteorder" in archive.namelist() else b"little"
        if order == b"big":
            raise UserError(f"{path}: was written on a big-endian machine: save it on a little-endian one")
        storages: dict[str, Storage] = {}
        load = _persistent(storages)
        complete = with_tensors(replace(rules, persistent=load), path, depth)
        content = interpret(io.BytesIO(archive.read(main[0])), complete)
        for key, storage in storages.items():
            storage.data = bytearray(archive.read(f"{root}data/{key}"))
            _check_size(storage)
    return content


def _read_legacy(data: bytes, path: Path, rules: Rules, depth: int) -> Any:
    stream = io.BytesIO(data)
    if interpret(stream, Rules()) != _MAGIC:
        raise ValueError("no file of torch.save")
    interpret(stream, Rules())  # the version of the format
    system = interpret(stream, Rules())
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise UserError(f"{path}: was written on a big-endian machine: save it on a little-endian one")
    storages: dict[str, Storage] = {}
    complete = with_tensors(replace(rules, persistent=_persistent(storages)), path, depth)
    content = interpret(stream, complete)
    for key in interpret(stream, Rules()):
        (count,) = struct.unpack("<q", stream.read(8))
        storage = storages[str(key)]
        size = count * (1 if storage.dtype is None else storage.dtype.itemsize)
        if count < 0 or size > len(data) - stream.tell():
            raise ValueError(f"storage {key} ends after the end of the file")
        storage.data = bytearray(stream.read(size))
        _check_size(storage)
    return content


def _persistent(storages: dict[str, Storage]) -> Callable[[Any], Any]:
    """A function that returns the storage of a persistent id and adds it under its key."""

    def load(key: Any) -> Any:
        if not isinstance(key, tuple) or len(key) < 1:
            raise pickle.UnpicklingError("it has a persistent id other than a storage's")
        if key[0] == "module" and len(key) > 1:  # a class with its source, before 1.6
            return key[1]
        if key[0] != "storage" or len(key) < 5 or not isinstance(key[1], Named) or not isinstance(key[4], int):
            raise pickle.UnpicklingError("it has a persistent id other than a storage's")
        if len(key) > 5 and key[5] is not None:
            raise pickle.UnpicklingError("it has views of storages, which PyTorch wrote before 0.4")
        kind = key[1].full.rpartition(".")[2]
        if kind not in DTYPES and kind != "UntypedStorage":
            raise pickle.UnpicklingError(f"it has a {kind}, whose dtype is not known")
        if not isinstance(key[2], (str, bytes, int)):  # str() of nested lists can take for ever
            raise pickle.UnpicklingError("it has a persistent id other than a storage's")
        name = str(key[2])
        return storages.setdefault(name, Storage(dtype=DTYPES.get(kind), key=name, count=key[4]))

    return load


def _check_size(storage: Storage) -> None:
    size = storage.count * (1 if storage.dtype is None else storage.dtype.itemsize)
    if storage.data is None or storage.count < 0 or size > len(storage.data):
        actual = 0 if storage.data is None else len(storage.data)
        raise pickle.UnpicklingError(f"it claims {size} bytes in storage {storage.key}, which has {actual}")
