"""What the folders of runs hold, read for a report: pre-trainings, probes, fine-tunings, comparisons."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resim.draw.curves import read_records
from resim.errors import UserError
from resim.runs.config import Recipe

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """What a run's folder holds; what is not there is empty."""

    path: Path
    name: str
    """Of the folder, with as much of its path as tells it from the others."""
    kind: str
    """"pretrain", "detect", "compare" or "probe"."""
    config: Json
    metrics: list[dict[str, object]]
    """Of every step, in order."""
    probe: Json
    """probe.json: every probe of some networks."""
    probes: list[Json]
    """probes.jsonl: one line each time it was measured while the run went on."""
    scores: list[Json]
    """scores.jsonl: one line an evaluation of a detector."""
    comparison: Json
    """compare.json."""
    resumed: int
    """How often the run was resumed."""

    @property
    def checkpoint(self) -> Path | None:
        """The last checkpoint, if there is one."""
        path = self.path / "checkpoints" / "last.pt"
        return path if path.exists() else None

    @property
    def pictures(self) -> list[Path]:
        """Pictures that the run drew, in the order of their names."""
        return sorted((self.path / "pictures").glob("*.png"))

    @property
    def recipe(self) -> Recipe | None:
        """Of a pre-training, if it is one of this version."""
        try:
            return Recipe.from_json(self.config["recipe"]) if self.kind == "pretrain" else None
        except (ValueError, KeyError, TypeError, AttributeError):
            return None


def read_runs(paths: Sequence[Path]) -> list[RunFiles]:
    """Read what each folder holds.

    Raises:
        UserError: a folder that is not there or holds nothing to report, or a damaged file.
    """
    if not paths:
        raise UserError("no run: name at least one folder of a run")
    names = _names(paths)
    return [_read(path, name) for path, name in zip(paths, names, strict=True)]


def _read(path: Path, name: str) -> RunFiles:
    if not path.is_dir():
        raise UserError(f"{path}: is no folder of a run")
    config, probe, comparison = (_json(path / f"{part}.json") for part in ("config", "probe", "compare"))
    if not (config or probe or comparison):
        raise UserError(f"{path}: holds no run (no config.json, probe.json or compare.json)")
    kind = config.get("kind") or ("compare" if comparison else "pretrain" if "recipe" in config else "probe")
    metrics = path / "metrics.jsonl"
    return RunFiles(
        path=path,
        name=name,
        kind=str(kind),
        config=config,
        metrics=read_records(metrics) if metrics.exists() and metrics.stat().st_size else [],
        probe=probe,
        probes=_lines(path / "probes.jsonl"),
        scores=_lines(path / "scores.jsonl"),
        comparison=comparison,
        resumed=len(_lines(path / "resumed.jsonl")),
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """The folders' names; with as many of the folders above as tell them apart.

    Raises:
        UserError: a folder that is there twice.
    """
    whole = [path.resolve() for path in paths]
    twice = next((path for path in whole if whole.count(path) > 1), None)
    if twice is not None:
        raise UserError(f"{twice}: is named twice, name each run once")
    names = []
    for path in whole:
        depth = 1
        while sum(other.parts[-depth:] == path.parts[-depth:] for other in whole) > 1:
            depth += 1
        names.append(str(Path(*path.parts[-depth:])))
    return names


def _json(path: Path) -> Json:
    """The object of a file; empty if there is no such file."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: is damaged, not JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not a JSON object")
    return content


def _lines(path: Path) -> list[Json]:
    """The objects of a file of lines, without a last one that was cut off; empty if there is no such file."""
    if not path.exists():
        return []
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            content = json.loads(line)
        except ValueError:
            if number == len(lines):
                break
            raise UserError(f"{path}: line {number} is damaged, not JSON") from None
        if isinstance(content, dict):
            found.append(content)
    return found
