"""Fuzz the readers: `python -m tests.fuzz [TARGET ...] --minutes 5`.

Each target runs in a process of its own with limits of memory and time. An input that fails is written to the folder of
findings with its traceback; `python -m tests.fuzz TARGET --replay FILE` runs it again.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # what tests share

from tests.fuzz.run import (
    MEMORY_DISK,
    SECONDS,
    WAITING,
    WATCH,
    Finding,
    limit_memory,
    processor_seconds,
    save_finding,
    try_input,
)  # fmt: skip
from tests.fuzz.targets import TARGETS, Target

_PART = 2000  # inputs before the folder is made again


def main() -> int:
    """Run the targets; the exit code is 1 if there are findings."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--minutes", type=float, default=5.0, help="for all targets together")
    parser.add_argument("--inputs", type=int, default=1 << 60, help="at most, for each target")
    parser.add_argument("--seed", type=int, default=0, help="of all inputs")
    parser.add_argument("--start", type=int, default=0, help="number of the first input")
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"), help="folder of findings")
    parser.add_argument("--engine", choices=("own", "hypothesis", "atheris"), default="own", help="what makes inputs")
    parser.add_argument("--replay", type=Path, help="run this input once")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = [name for name in options.targets if name not in TARGETS]
    if unknown:
        parser.error(f"no target {unknown[0]!r}: one of {', '.join(TARGETS)}")
    targets = [TARGETS[name] for name in options.targets or TARGETS]
    logging.disable(logging.CRITICAL)
    if options.replay is not None:
        with targets[0].surroundings():
            return _replay(targets[0], options.replay)
    if options.child is not None:
        with targets[0].surroundings():
            return _child(targets[0], options)
    return _parent(targets, options)


def _replay(target: Target, path: Path) -> int:
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=MEMORY_DISK) as parent:
        folder = target.fresh(Path(parent) / "replay")
        try_input(target, target.make(0, 0), folder)  # what is imported at first use is no finding
        WATCH.install()
        finding = try_input(target, path.read_bytes(), folder)
    print(finding.text if finding else f"{target.name}: read, or refused with a clear error")
    return 1 if finding else 0


def _child(target: Target, options: argparse.Namespace) -> int:
    """Try inputs; write each to `current` before it is tried, so that the parent has it if this process dies."""
    parent: Path = options.child
    state, kinds = parent / "state.json", Counter[str]()
    if options.engine != "own":
        from tests.fuzz import engines

        return engines.run(target, options, parent)
    end = time.monotonic() + options.minutes * 60
    index, folder = options.start, target.fresh(parent / "work")
    for warm in range(5):  # what is imported at first use does not count as an input's memory
        try_input(target, target.make(options.seed, warm), folder)
    WATCH.install()
    limit_memory()
    while index < options.start + options.inputs and time.monotonic() < end:
        if index % _PART == 0:
            folder = target.fresh(parent / "work")
        data = target.make(options.seed, index)
        (parent / "current").write_bytes(data)
        finding = try_input(target, data, folder)
        if finding is not None:
            kinds[finding.kind] += 1
            if kinds[finding.kind] <= 2:
                save_finding(finding, target.name, data, f"seed {options.seed}, input {index}", options.out)
        index += 1
        if index % 50 == 0 or finding is not None:
            state.write_text(json.dumps({"index": index, "kinds": kinds}))
    state.write_text(json.dumps({"index": index, "kinds": kinds}))
    return 0


def _parent(targets: list[Target], options: argparse.Namespace) -> int:
    totals, counts = Counter[str](), Counter[str]()
    began = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    for number, target in enumerate(targets):
        left = options.minutes * 60 - (time.monotonic() - began)
        end = time.monotonic() + max(left / (len(targets) - number), 1.0)
        start = options.start
        while time.monotonic() < end and start < options.start + options.inputs:
            with tempfile.TemporaryDirectory(prefix="fuzz-", dir=MEMORY_DISK) as name:
                start = _run_child(target, options, Path(name), start, end, totals)
        counts[target.name] = start - options.start
        print(f"{target.name:<12} {counts[target.name]:>9} inputs", flush=True)
    print(f"{'all':<12} {sum(counts.values()):>9} inputs, seed {options.seed}, {platform.python_version()}")
    for kind, count in totals.most_common():
        print(f"finding: {kind} ({count} times); see {options.out}")
    return 1 if totals else 0


def _run_child(
    target: Target, options: argparse.Namespace, parent: Path, start: int, end: float, totals: Counter[str]
) -> int:
    """Run a child until its time is over or it dies; returns the number of the next input."""
    inputs = min(options.inputs, options.start + options.inputs - start)
    command = [sys.executable, "-m", "tests.fuzz", target.name, "--child", str(parent), "--seed", str(options.seed),
               "--start", str(start), "--inputs", str(inputs), "--out", str(options.out), "--engine", options.engine,
               "--minutes", str(max(end - time.monotonic(), 1) / 60)]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})
    current, died = parent / "current", ""
    written = begun = 0.0
    while process.poll() is None:
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            changed = current.stat().st_mtime if current.exists() else time.time()
            taken = processor_seconds(process.pid)
            if changed != written:
                written, begun = changed, taken
            elif taken - begun > 3 * SECONDS or time.time() - changed > 2 * WAITING * SECONDS:
                process.kill()
                died = "hangs where no signal is handled"
    errors = process.stderr.read().decode(errors="replace") if process.stderr else ""
    process.wait()
    state = json.loads((parent / "state.json").read_text()) if (parent / "state.json").exists() else {}
    for kind, count in state.get("kinds", {}).items():
        totals[f"{target.name}: {kind}"] += count
    if process.returncode and not died:
        died = f"the process ended with {process.returncode}"
    index = state.get("index", start)
    if died:
        if not current.exists():
            raise SystemExit(f"{target.name}: cannot begin: {errors[-2000:]}")
        data = current.read_bytes()
        save_finding(
            Finding(died, errors[-6000:]), target.name, data, f"seed {options.seed}, after {index}", options.out
        )
        totals[f"{target.name}: {died}"] += 1
        return index + 50
    return index


if __name__ == "__main__":
    sys.exit(main())
