"""The section on what ran: recipe, command, data, versions and git state of each run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence

from resim.report.page import Facts, Folded, Part, Table
from resim.report.run_files import RunFiles

_PACKAGES = ("resim", "torch", "torchvision", "python")


def what_ran(runs: Sequence[RunFiles]) -> list[Part]:
    """A table of all runs, and the provenance of each: command, data, versions, git state."""
    rows = []
    for run in runs:
        recipe = run.config.get("recipe") or run.comparison.get("recipe") or {}
        settings = run.config.get("run") or {}
        model = recipe.get("model") or recipe.get("detector") or {}
        levels = " ".join(str(level).partition(":")[0] for level in model.get("levels", ()))
        last = run.metrics[-1] if run.metrics else {}
        device = " ".join(str(settings[key]) for key in ("device", "precision") if key in settings)
        seed = (recipe.get("optim") or recipe.get("tune") or {}).get("seed", "")
        steps = f"{int(_float(last['step'])) + 1:,}" if "step" in last else ""
        cells = (recipe.get("name", ""), model.get("backbone", ""), levels, steps, seed)
        rows.append((run.name, run.kind, *map(str, cells), device, str(run.num_resumed or "")))
    columns = ("run", "kind", "recipe", "backbone", "levels", "steps", "seed", "device", "times resumed")
    parts: list[Part] = [Table(columns=columns, rows=tuple(rows), words=5)]
    parts += [Facts(rows=tuple(_provenance(run))) for run in runs if run.config]
    return parts


def configurations(runs: Sequence[RunFiles]) -> list[Part]:
    """The configuration of each run, folded."""
    return [
        Folded(title=f"{run.name}: complete configuration", text=json.dumps(run.config, indent=2))
        for run in runs
        if run.config
    ]


def _provenance(run: RunFiles) -> Iterator[tuple[str, str]]:
    yield "run", str(run.path)
    start = run.config.get("init") or (run.config.get("run") or {}).get("start_from")
    if start:
        yield "initialisation", str(start)
    data, versions, git = (run.config.get(key) or {} for key in ("data", "versions", "git"))
    if run.config.get("command"):
        yield "command", " ".join(map(str, run.config["command"]))
    if isinstance(data, dict) and data.get("sources"):
        count = f"{data['images']:,} images of " if isinstance(data.get("images"), int) else ""
        yield "data", f"{count}{', '.join(map(str, data['sources']))} (hash {data.get('hash', 'unknown')})"
    known = [f"{name} {versions[name]}" for name in _PACKAGES if name in versions]
    if known:
        yield "versions", ", ".join(known)
    for name, state in git.items() if isinstance(git, dict) else ():
        if isinstance(state, dict) and state.get("commit"):
            changed = ", with uncommitted changes" if state.get("changed") else ""
            yield f"git, {name.replace('_', ' ')}", f"{str(state['commit'])[:12]}{changed}"


def _float(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
