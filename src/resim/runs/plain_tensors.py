"""Tensors and plain data in a file of torch.save, read by PyTorch's loader with `weights_only`."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from resim.errors import UserError
from resim.runs.archive import ZIP, DamagedError, check_archive
from resim.runs.pickle_limits import check_pickle

_REFUSED = re.compile(r"\bGLOBAL ([\w.]+)|Unsupported class ([\w.]+)|[Cc]an only (?:build|create) .*?, but got (\S+)")
_ADVICE = re.compile(r"weights_only|safe_globals|trust|torch\.load|PyTorch 2\.6")


def load_tensors(data: bytes, path: Path) -> Any:
    """The content of a file of torch.save, on the CPU. No code in it is run.

    PyTorch's messages for a file that it refuses advise loading it without `weights_only`, which runs the code in it:
    they are never quoted.

    Args:
        data: the file's bytes.
        path: its name, for messages.

    Raises:
        DamagedError: the file is truncated, does not match the checksums in it, or is no file of torch.save since 1.6.
        UserError: it has other objects than tensors and plain data, or there is no memory for it.
    """
    is_checked = check_archive(io.BytesIO(data), path)
    try:
        if not data.startswith(ZIP):
            raise ValueError("no zip archive, as torch.save writes it")
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if any(entry.filename.endswith("/constants.pkl") for entry in entries):
                raise pickle.UnpicklingError("it is a program of TorchScript")
            for entry in entries:
                if entry.filename.endswith("data.pkl"):
                    with archive.open(entry) as member:
                        check_pickle(member.read(), plain=True)
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        what = f"refused: {_reason(str(error))}; only tensors and plain data are read"
        raise UserError(f"{path}: {what}: name a file that resim wrote") from None
    except MemoryError:
        raise UserError(f"{path}: there is no memory to read its {len(data)} bytes") from None
    except Exception as error:  # a damaged file can raise anything
        lines = [line.strip() for line in str(error).splitlines() if line.strip() and not _ADVICE.search(line)]
        reason = lines[0][:120] if lines else type(error).__name__
        kind = UserError if is_checked else DamagedError
        raise kind(f"{path}: damaged, or no checkpoint ({len(data)} bytes; {reason})") from None


def _reason(text: str) -> str:
    """What a pickle has that is refused."""
    match = _REFUSED.search(text)
    if match is not None:
        name = next(group for group in match.groups() if group)
        return f"it imports {name.rstrip('.')} when it is loaded"
    detail = text.rpartition("WeightsUnpickler error: ")[2].strip().partition("\n")[0]
    if not detail or _ADVICE.search(detail):
        return "it has other objects than tensors and plain data"
    return detail[:120].rstrip(".") if detail.startswith("it ") else f"its pickle is of another kind ({detail[:120]})"
