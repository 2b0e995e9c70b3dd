"""The first section: a verdict of three lines on everything that was compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from resim.detection.comparison_verdict import comparison_verdict
from resim.probes.verdict import probe_verdict
from resim.report.page import Heading, Part, Text
from resim.report.run_files import Json, RunFiles

_READINGS = {"correspondence": "correspondence on", "knn": "kNN on", "segmentation": "mIoU on"}
"""Names of the readings during training, by the name before the slash in probes.jsonl."""


def verdict_parts(runs: Sequence[RunFiles]) -> list[Part]:
    """Three lines for each probe.json and compare.json; for all other runs, the command that measures them."""
    parts: list[Part] = []
    for run in runs:
        if run.probe.get("networks"):
            parts += [Heading(text=f"Probes: {run.name}"), *map(_line, probe_verdict(run.probe))]
    for run in runs:
        if run.comparison:
            parts += [Heading(text=f"Detectors: {run.name}"), *map(_line, comparison_verdict(run.comparison))]
    trained = [run for run in runs if run.kind == "pretrain" and not _is_probed(run, runs)]
    tuned = [run for run in runs if run.kind == "detect" and run.scores and not _is_compared(run, runs)]
    if trained:
        names = " ".join(str(run.path) for run in trained)
        lines = _not_measured(f"resim probe {names} random DATA", [_readings(run) for run in trained])
        parts += [Heading(text=f"Probes: {_names(trained)}"), *map(_line, lines)]
    if tuned:
        scores = [f"{run.name} {_last_ap(run)}" for run in tuned]
        inits = dict.fromkeys(str(run.config.get("init", "random")) for run in tuned)
        command = f"resim compare DATA --val VAL --init {' '.join(dict.fromkeys([*inits, 'random']))} --out OUT"
        parts += [Heading(text=f"Detectors: {_names(tuned)}"), *map(_line, _not_measured(command, scores))]
    return parts


def _line(text: str) -> Text:
    return Text(text=text)


def _names(runs: Sequence[RunFiles]) -> str:
    return ", ".join(run.name for run in runs)


def _not_measured(command: str, readings: Sequence[str]) -> tuple[str, str, str]:
    """Three lines that name the command, with the readings that have no interval."""
    numbers = "; ".join(text for text in readings if text)
    return (
        f"1. Better than untrained? not measured: run {command}{f' (without interval: {numbers})' if numbers else ''}.",
        "2. Better than another? not measured: name the other in the same command.",
        "3. Within noise: not known: nothing was measured with an interval.",
    )


def _readings(run: RunFiles) -> str:
    """Readings of the probes before the first step and at the last one; empty if there are none."""
    before = next((line for line in run.probes if line.get("step") == 0), {})
    last = run.probes[-1] if run.probes else {}
    parts = []
    for measure, words in _READINGS.items():
        both = [key for key in last if key.startswith(f"{measure}/") and _is_number(before.get(key), last[key])]
        if both and last is not before:
            # the level on which the untrained network is best: a choice that does not favour the run
            key = max(both, key=lambda key: before[key])
            parts.append(f"{words} {key.partition('/')[2]} {100 * before[key]:.1f} % -> {100 * last[key]:.1f} %")
    return f"{run.name}, untrained -> step {last.get('step')}: {', '.join(parts)}" if parts else ""


def _last_ap(run: RunFiles) -> str:
    scores = {kind: values.get("AP") for kind, values in run.scores[-1].get("scores", {}).items()}
    known = [f"{kind} AP {100 * value:.2f}" for kind, value in scores.items() if _is_number(value)]
    return ", ".join(known) or "no AP"


def _is_number(*values: object) -> bool:
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def _is_probed(run: RunFiles, runs: Sequence[RunFiles]) -> bool:
    """Whether a probe.json contains the run, by the path of a network's weights or by its name."""
    networks: list[Json] = [n for other in runs for n in other.probe.get("networks") or () if isinstance(n, dict)]
    paths = [Path(str(n["path"])) for n in networks if n.get("path")]
    named = any(str(n.get("name", "")).partition("/")[0] == run.path.resolve().name for n in networks)
    return named or any(path.resolve().is_relative_to(run.path.resolve()) for path in paths)


def _is_compared(run: RunFiles, runs: Sequence[RunFiles]) -> bool:
    """Whether a compare.json contains the run, by its folder."""
    comparisons = [folders for other in runs for folders in (other.comparison.get("runs") or {}).values()]
    return any(Path(str(path)).resolve() == run.path.resolve() for folders in comparisons for path in folders)
