"""The head of a report: for everything that was compared, a verdict of three lines, from the numbers that runs hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from resim.detection.comparison_verdict import comparison_verdict
from resim.probes.verdict import probe_verdict
from resim.report.page import Heading, Part, Text
from resim.report.runs import Json, RunFiles

_READINGS = {"correspondence": "regions found again on", "knn": "kNN on", "segmentation": "mIoU on"}
"""Of probes while a run went on, by the name before the slash in probes.jsonl."""


def verdict_parts(runs: Sequence[RunFiles]) -> list[Part]:
    """Three lines for each probe.json and each compare.json, and what is missing for those of the other runs."""
    parts: list[Part] = []
    for run in runs:
        if run.probe.get("networks"):
            parts += [Heading(text=f"Probes of {run.name}"), *map(_line, probe_verdict(run.probe))]
    for run in runs:
        if run.comparison:
            parts += [Heading(text=f"Detectors of {run.name}"), *map(_line, comparison_verdict(run.comparison))]
    trained = [run for run in runs if run.kind == "pretrain" and not _is_probed(run, runs)]
    tuned = [run for run in runs if run.kind == "detect" and run.scores and not _is_compared(run, runs)]
    if trained:
        names = " ".join(str(run.path) for run in trained)
        lines = _unmeasured(f"resim probe {names} random DATA", [_reading(run) for run in trained])
        parts += [Heading(text=f"Probes of {_names(trained)}"), *map(_line, lines)]
    if tuned:
        scores = [f"{run.name} has {_last_ap(run)}" for run in tuned]
        inits = dict.fromkeys(str(run.config.get("init", "random")) for run in tuned)
        command = f"resim compare DATA --val VAL --init {' '.join(dict.fromkeys([*inits, 'random']))} --out OUT"
        parts += [Heading(text=f"Detectors of {_names(tuned)}"), *map(_line, _unmeasured(command, scores))]
    return parts


def _line(text: str) -> Text:
    return Text(text=text)


def _names(runs: Sequence[RunFiles]) -> str:
    return ", ".join(run.name for run in runs)


def _unmeasured(command: str, known: Sequence[str]) -> tuple[str, str, str]:
    numbers = "; ".join(text for text in known if text)
    without = f"; without an interval, {numbers}" if numbers else ""
    return (
        f"1. Better than untrained? not measured: {command} measures it{without}.",
        "2. Better than another? not measured: name the other in the same command.",
        "3. Within noise: not known, nothing was measured with an interval.",
    )


def _reading(run: RunFiles) -> str:
    """What the run's own probes read before the first step and at the end; empty if they did not."""
    before = next((line for line in run.probes if line.get("step") == 0), {})
    last = run.probes[-1] if run.probes else {}
    parts = []
    for measure, words in _READINGS.items():
        both = [key for key in last if key.startswith(f"{measure}/") and _is_number(before.get(key), last[key])]
        if both and last is not before:
            key = max(
                both, key=lambda key: before[key]
            )  # where the untrained network is best: not in favour of the run
            parts.append(f"{words} {key.partition('/')[2]} {100 * before[key]:.1f} %, then {100 * last[key]:.1f} %")
    when = f"before the first step and after step {last.get('step')}"
    return f"{run.name}, {when}: {', '.join(parts)}" if parts else ""


def _last_ap(run: RunFiles) -> str:
    scores = {kind: values.get("AP") for kind, values in run.scores[-1].get("scores", {}).items()}
    known = [f"{kind} AP {100 * value:.2f}" for kind, value in scores.items() if _is_number(value)]
    return ", ".join(known) or "no AP"


def _is_number(*values: object) -> bool:
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def _is_probed(run: RunFiles, runs: Sequence[RunFiles]) -> bool:
    """Whether a probe.json has the run, by the path of a network's weights or by its name."""
    networks: list[Json] = [n for other in runs for n in other.probe.get("networks") or () if isinstance(n, dict)]
    paths = [Path(str(n["path"])) for n in networks if n.get("path")]
    named = any(str(n.get("name", "")).partition("/")[0] == run.path.resolve().name for n in networks)
    return named or any(path.resolve().is_relative_to(run.path.resolve()) for path in paths)


def _is_compared(run: RunFiles, runs: Sequence[RunFiles]) -> bool:
    folders = [
        folder for other in runs for of_name in (other.comparison.get("runs") or {}).values() for folder in of_name
    ]
    return any(Path(str(folder)).resolve() == run.path.resolve() for folder in folders)
