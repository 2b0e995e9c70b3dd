"""Inputs made by hypothesis and by atheris, which are installed for this alone: `pip install hypothesis atheris`."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.mutate import to_json
from tests.fuzz.run import SECONDS, WATCH, limit_memory, save_finding, try_input
from tests.fuzz.targets import Target


def run(target: Target, options: argparse.Namespace, parent: Path) -> int:
    """Try the inputs of an engine until the time is over; called in the process of one target."""
    folder = target.fresh(parent / "work")
    kinds, count = Counter[str](), [0]
    for warm in range(5):
        try_input(target, target.make(options.seed, warm), folder)
    WATCH.install()

    def attempt(data: bytes) -> None:
        (parent / "current").write_bytes(data)
        finding = try_input(target, data, folder)
        count[0] += 1
        if finding is not None:
            kinds[finding.kind] += 1
            if kinds[finding.kind] <= 2:
                save_finding(finding, target.name, data, f"{options.engine}, seed {options.seed}", options.out)
        if count[0] % 50 == 0 or finding is not None:
            state = {"index": options.start + count[0], "kinds": kinds}
            (parent / "state.json").write_text(json.dumps(state))

    seconds = max(int(options.minutes * 60), 1)
    if options.engine == "atheris":
        _atheris(target, attempt, options.seed, seconds, parent)
    else:
        limit_memory()
        _hypothesis(target, attempt, options.seed, seconds)
    (parent / "state.json").write_text(json.dumps({"index": options.start + count[0], "kinds": kinds}))
    return 0


def _hypothesis(target: Target, attempt: Any, seed: int, seconds: int) -> None:
    """Trees of plain data where the target reads some, edits of whole inputs, and bytes."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as with_seed
    from hypothesis import strategies as st

    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30)
    trees = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=12), inner))
    known = list(target.trees())
    keys = sorted({key for tree in known for key in _keys(tree)}) or ["a"]
    named = st.recursive(leaves, lambda inner: st.dictionaries(st.sampled_from(keys), inner) | st.lists(inner))
    edits = st.builds(lambda number: target.make(seed, number), st.integers(0, 1 << 40))
    written = st.builds(
        lambda tree: target.encode(tree, Random(seed)) if isinstance(tree, dict) else to_json(tree), named
    )
    inputs = st.binary(max_size=2000) | edits | st.builds(to_json, trees) | written
    end = time.monotonic() + seconds
    round_ = 0
    while time.monotonic() < end:
        quiet = settings(
            max_examples=500, database=None, deadline=None, phases=[Phase.generate],
            suppress_health_check=tuple(HealthCheck.__members__.values()), print_blob=False,
        )  # fmt: skip
        with_seed(seed + round_)(quiet(given(inputs)(attempt)))()
        round_ += 1


def _keys(tree: Any) -> set[str]:
    if isinstance(tree, dict):
        return set(tree) | {key for value in tree.values() for key in _keys(value)}
    return {key for value in tree for key in _keys(value)} if isinstance(tree, list) else set()


def _atheris(target: Target, attempt: Any, seed: int, seconds: int, parent: Path) -> None:
    """LibFuzzer, guided by the branches of resim's own code that an input reaches."""
    atheris: Any = importlib.import_module("atheris")
    corpus = parent / "corpus"
    corpus.mkdir()
    for number, data in enumerate((*target.seeds(), *(target.encode(tree, Random(0)) for tree in target.trees()))):
        (corpus / str(number)).write_bytes(data)
    for name, module in list(sys.modules.items()):
        if name.startswith("resim.") and name.split(".")[1] in ("datasets", "exchange", "views", "runs", "similarity"):
            for attribute, value in list(vars(module).items()):
                if getattr(value, "__module__", None) == name and hasattr(value, "__code__"):
                    setattr(module, attribute, atheris.instrument_func(value))
    arguments = [
        sys.argv[0], f"-seed={seed + 1}", f"-max_total_time={seconds}", f"-timeout={int(3 * SECONDS)}",
        "-rss_limit_mb=6000",
        "-verbosity=0", "-print_final_stats=0", f"-artifact_prefix={parent}/", "-max_len=65536", str(corpus),
    ]  # fmt: skip
    atheris.Setup(arguments, attempt)
    atheris.Fuzz()
