"""Files of torch.save, old and new, and of TorchScript, read without PyTorch's own loader: no code in them is run."""

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
from resim.exchange.inert import Named, Storage
from resim.exchange.makers import DTYPES, MAKERS
from resim.exchange.pickles import Reading, interpret
from resim.runs.archive import ZIP, check_archive, has_checksums

LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""What files of torch.save before 1.6 begin with: a pickle of a magic number."""

_MAGIC = 0x1950A86A20F9469CFC6C

_PACKED = {".npy": "an archive of NumPy's (.npz)", ".pth": "a zip archive of files", ".pt": "a zip archive of files"}


def read_torch(data: bytes, path: Path, reading: Reading, depth: int = 0) -> Any:
    """What a file of torch.save or TorchScript holds, its tensors as `SavedTensor`.

    Args:
        data: the file's bytes.
        path: its name, for messages.
        reading: notes what is passed over.
        depth: of a file within a file (a plain pickle of tensors has one for each storage).

    Raises:
        UserError: damaged, compressed, or another kind of archive.
        pickle.UnpicklingError: as `read_pickle`.
        Exception: of many kinds, for a damaged file.
    """
    return _read_zip(data, path, reading, depth) if data.startswith(ZIP) else _read_legacy(data, path, reading, depth)


def with_tensors(reading: Reading, path: Path, depth: int = 0) -> Reading:
    """The same for a plain pickle of tensors, which keeps each storage as a file of torch.save within it."""

    def load(data: Any) -> Any:
        if not isinstance(data, (bytes, bytearray)) or depth > 2:
            raise pickle.UnpicklingError("it holds a storage that is none")
        return read_torch(bytes(data), path, reading, depth + 1)

    return replace(reading, makers={**MAKERS, "torch.storage._load_from_bytes": load})


def _read_zip(data: bytes, path: Path, reading: Reading, depth: int) -> Any:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        main = [entry.filename for entry in entries if entry.filename.split("/")[1:] == ["data.pkl"]]
        if not main:
            names = [entry.filename for entry in entries]
            what = next((what for end, what in _PACKED.items() if any(n.endswith(end) for n in names)), "a zip archive")
            shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
            raise UserError(f"{path}: is {what} ({shown}), not a file of torch.save: unpack it, and save a state_dict")
        root = main[0].removesuffix("data.pkl")
        code = (f"{root}code/", f"{root}extra/")  # of TorchScript, which are compressed and never read
        packed = [
            entry.filename
            for entry in entries
            if entry.compress_type != zipfile.ZIP_STORED and not entry.filename.startswith(code)
        ]
        if packed:  # torch.save never does it, and little can unpack to much
            raise UserError(f"{path}: {packed[0]} in it is compressed, as torch.save does not do; save it again")
        check_archive(io.BytesIO(data), path)
        if not has_checksums(entries):
            for entry in entries:
                setattr(entry, "CRC", None)  # noqa: B010 - zipfile then compares with nothing
        order = archive.read(f"{root}byteorder") if f"{root}byteorder" in archive.namelist() else b"little"
        if order == b"big":
            raise UserError(f"{path}: was written on a big-endian machine; save it on a little-endian one")
        storages: dict[str, Storage] = {}
        load = _persistent(storages)
        made = with_tensors(replace(reading, persistent=load), path, depth)
        content = interpret(io.BytesIO(archive.read(main[0])), made)
        for key, storage in storages.items():
            storage.data = bytearray(archive.read(f"{root}data/{key}"))
            _check_size(storage)
    return content


def _read_legacy(data: bytes, path: Path, reading: Reading, depth: int) -> Any:
    stream = io.BytesIO(data)
    if interpret(stream, Reading()) != _MAGIC:
        raise ValueError("no file of torch.save")
    interpret(stream, Reading())  # the version of the format
    system = interpret(stream, Reading())
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise UserError(f"{path}: was written on a big-endian machine; save it on a little-endian one")
    storages: dict[str, Storage] = {}
    made = with_tensors(replace(reading, persistent=_persistent(storages)), path, depth)
    content = interpret(stream, made)
    for key in interpret(stream, Reading()):
        (count,) = struct.unpack("<q", stream.read(8))
        storage = storages[str(key)]
        size = count * (1 if storage.dtype is None else storage.dtype.itemsize)
        if count < 0 or size > len(data) - stream.tell():
            raise ValueError(f"storage {key} ends behind the end of the file")
        storage.data = bytearray(stream.read(size))
        _check_size(storage)
    return content


def _persistent(storages: dict[str, Storage]) -> Callable[[Any], Any]:
    """The storage that a persistent id stands for, noted under its key."""

    def load(key: Any) -> Any:
        if not isinstance(key, tuple) or len(key) < 1:
            raise pickle.UnpicklingError("it has a persistent id that is no storage's")
        if key[0] == "module" and len(key) > 1:  # a class with its source, before 1.6
            return key[1]
        if key[0] != "storage" or len(key) < 5 or not isinstance(key[1], Named) or not isinstance(key[4], int):
            raise pickle.UnpicklingError("it has a persistent id that is no storage's")
        if len(key) > 5 and key[5] is not None:
            raise pickle.UnpicklingError("it has views of storages, as before PyTorch 0.4")
        kind = key[1].full.rpartition(".")[2]
        if kind not in DTYPES and kind != "UntypedStorage":
            raise pickle.UnpicklingError(f"it has a {kind}, whose numbers are not known")
        name = str(key[2])
        return storages.setdefault(name, Storage(dtype=DTYPES.get(kind), key=name, count=key[4]))

    return load


def _check_size(storage: Storage) -> None:
    size = storage.count * (1 if storage.dtype is None else storage.dtype.itemsize)
    if storage.data is None or storage.count < 0 or size > len(storage.data):
        held = 0 if storage.data is None else len(storage.data)
        raise pickle.UnpicklingError(f"it claims {size} bytes in storage {storage.key}, which has {held}")
