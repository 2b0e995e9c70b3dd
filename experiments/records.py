"""Rows of a study's results.csv: one measured number each, with its provenance."""

from __future__ import annotations

import csv
import io
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from resim.runs.checkpoints import write_atomically
from resim.runs.lines import append
from resim.runs.provenance import git_state

T = TypeVar("T")
UNTRAINED = "untrained"  # the method of networks that are not pre-trained


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured number, or an error."""

    method: str
    """Method of pre-training, or `untrained`."""
    seed: int
    """Seed of pre-training."""
    pairs: int
    """Number of view pairs of the pre-training so far."""
    probe: str
    level: str = ""
    measure: str = ""
    tune_seed: int | None = None
    """Seed of fine-tuning."""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    """95 % interval over test images."""
    num_images: int | None = None
    """Number of test images."""
    status: str = "ok"
    """`ok`, or the text of the error."""


_PROVENANCE = ("commit", "torch", "processor", "date")


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Append rows to a results.csv, which is created if it does not exist: all of them, or none.

    Raises:
        WriteError: the disk is full, or the file cannot be written to.
    """
    provenance = _provenance()
    is_new = not path.exists() or path.stat().st_size == 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with io.StringIO(newline="") as file:
        writer = csv.DictWriter(file, [*(field.name for field in fields(Row)), *_PROVENANCE])
        if is_new:
            writer.writeheader()
        for row in rows:
            writer.writerow({name: "" if value is None else value for name, value in asdict(row).items()} | provenance)
        append(path, file.getvalue().encode())


def read_rows(path: Path) -> Iterator[Row]:
    """Read all rows, in the order of measurement; none if the file does not exist."""
    if not path.exists():
        return
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            yield Row(
                method=line["method"],
                seed=int(line["seed"]),
                pairs=int(line["pairs"]),
                probe=line["probe"],
                level=line["level"],
                measure=line["measure"],
                tune_seed=_number(int, line["tune_seed"]),
                value=_number(float, line["value"]),
                low=_number(float, line["low"]),
                high=_number(float, line["high"]),
                num_images=_number(int, line["num_images"]),
                status=line["status"],
            )


def write_counts(out: Path, network: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Add arrays by probe and level to a network's file in counts/, from which differences are bootstrapped.

    Args:
        out: folder of the study.
        network: METHOD-seedSEED-PAIRS.
        arrays: per-image counts, or values of bootstrap samples of the images.
    """
    path = out / "counts" / f"{network}.npz"
    merged: dict[str, Any] = read_counts(path) | dict(arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: np.savez_compressed(file, **merged))


def read_counts(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a network's file; empty if it does not exist."""
    if not path.exists():
        return {}
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _number(kind: Callable[[str], T], text: str) -> T | None:
    return kind(text) if text else None


def _provenance() -> dict[str, str]:
    state = git_state(Path(__file__).parent) or {"commit": "unknown", "changed": False}
    changed = "+changes" if state["changed"] else ""
    return {
        "commit": f"{state['commit'][:10]}{changed}",
        "torch": torch.__version__,
        "processor": _processor(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo")
    if lines.exists():
        for line in lines.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
