"""Reading the folders of runs for a report: pre-trainings, probes, fine-tunings, comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from resim.counts import counted
from resim.draw.curves import read_curves
from resim.errors import UserError
from resim.reading import open_file, read_json
from resim.runs import lines as run_lines
from resim.runs.config import Recipe

Json = dict[str, Any]

_RUN_FILES = ("config.json", "probe.json", "compare.json")
_MAX_NAMED = 6


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """The content of a run's folder; a file that does not exist is empty."""

    path: Path
    name: str
    """Of the folder, with as many of its parents as distinguish it from the others."""
    kind: str
    """"pretrain", "detect", "compare" or "probe"."""
    config: Json
    metrics: list[dict[str, object]]
    """metrics.jsonl: a record per step, in order."""
    probe: Json
    """probe.json: the scores of `resim probe`."""
    probes: list[Json]
    """probes.jsonl: a line per reading of the probes during training."""
    scores: list[Json]
    """scores.jsonl: a line per evaluation of a detector."""
    comparison: Json
    """compare.json: the results of `resim compare`."""
    num_resumed: int
    """How many times the run was resumed."""

    @property
    def checkpoint(self) -> Path | None:
        """The last checkpoint; None if there is none."""
        path = self.path / "checkpoints" / "last.pt"
        return path if path.exists() else None

    @property
    def pictures(self) -> list[Path]:
        """Pictures that the run wrote, in the order of their names."""
        return sorted((self.path / "pictures").glob("*.png"))

    @property
    def recipe(self) -> Recipe | None:
        """The recipe of a pre-training; None if this version cannot read it."""
        try:
            return Recipe.from_json(self.config["recipe"]) if self.kind == "pretrain" else None
        except (ValueError, KeyError, TypeError, AttributeError):
            return None


def read_runs(paths: Sequence[Path]) -> list[RunFiles]:
    """Read the folder of each run.

    Raises:
        UserError: a folder does not exist or contains nothing to report, or a file is damaged.
    """
    if not paths:
        raise UserError("no run: name at least one folder of a run")
    names = _short_names(paths)
    return [_read_run(path, name) for path, name in zip(paths, names, strict=True)]


def read_picture(path: Path) -> Image.Image:
    """Read a picture that a run wrote.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with open_file(path) as file, Image.open(file) as picture:
            return picture.convert("RGB")
    except OSError as error:
        raise UserError(f"{path}: cannot be read as a picture ({error}); move it away or restore it") from None


def _read_run(path: Path, name: str) -> RunFiles:
    if not path.is_dir():
        raise UserError(f"{path}: is not a folder; name the folder of a run")
    config, probe, comparison = (_read_json(path / f"{part}.json") for part in ("config", "probe", "compare"))
    if not (config or probe or comparison):
        raise UserError(f"{path}: contains no run ({_absent_run(path)})")
    kind = config.get("kind") or ("compare" if comparison else "pretrain" if "recipe" in config else "probe")
    metrics = path / "metrics.jsonl"
    return RunFiles(
        path=path,
        name=name,
        kind=str(kind),
        config=config,
        metrics=read_curves(metrics) if metrics.exists() and metrics.stat().st_size else [],
        probe=probe,
        probes=run_lines.read_records(path / "probes.jsonl"),
        scores=run_lines.read_records(path / "scores.jsonl"),
        comparison=comparison,
        num_resumed=len(run_lines.read_records(path / "resumed.jsonl")),
    )


def _absent_run(path: Path) -> str:
    """What a folder without a run contains: the runs below it, to be named, or nothing."""
    inner = sorted({file.parent for name in _RUN_FILES for file in path.glob(f"*/{name}")})
    if not inner:
        return "no " + ", ".join(_RUN_FILES[:-1]) + f" or {_RUN_FILES[-1]}"
    names = " ".join(map(str, inner[:_MAX_NAMED])) + (" ..." if len(inner) > _MAX_NAMED else "")
    return f"{counted(len(inner), 'run')} inside it: name {'it' if len(inner) == 1 else 'them'}: {names}"


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Names of the folders, each with as many of its parents as distinguish it from the others.

    Raises:
        UserError: a folder is named twice.
    """
    resolved = [path.resolve() for path in paths]
    repeated = next((path for path in resolved if resolved.count(path) > 1), None)
    if repeated is not None:
        raise UserError(f"{repeated}: is named twice; name each run once")
    names = []
    for path in resolved:
        depth = 1
        while sum(other.parts[-depth:] == path.parts[-depth:] for other in resolved) > 1:
            depth += 1
        names.append(str(Path(*path.parts[-depth:])))
    return names


def _read_json(path: Path) -> Json:
    """Read the object in a file; empty if the file does not exist."""
    if not path.exists():
        return {}
    try:
        content = read_json(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is damaged, not JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not a JSON object")
    return content
