"""Inputs made by hypothesis and by atheris, which are installed for this alone: `pip install hypothesis atheris`."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import sys
import time
import types
from collections import Counter
from collections.abc import Iterator
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
        _hypothesis(target, attempt, options.seed, seconds, parent)
    (parent / "state.json").write_text(json.dumps({"index": options.start + count[0], "kinds": kinds}))
    return 0


def _hypothesis(target: Target, attempt: Any, seed: int, seconds: int, parent: Path) -> None:
    """Rounds of 500 examples until the time is over.

    Hypothesis mixes in the constants of all modules that are loaded: another version of the code has other inputs.
    """
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as with_seed
    from hypothesis.configuration import set_hypothesis_home_dir

    set_hypothesis_home_dir(parent / "hypothesis")
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    rules = settings(
        max_examples=500, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=slow
    )
    inputs, end, round_ = input_strategy(target, seed), time.monotonic() + seconds, 0
    while time.monotonic() < end:
        with_seed(seed + round_)(rules(given(inputs)(attempt)))()
        round_ += 1


def input_strategy(target: Target, seed: int) -> Any:
    """A strategy of hypothesis: bytes, plain data, whole inputs with plain data in one place, and our own inputs."""
    from hypothesis import strategies as st

    known = list(target.trees())
    keys = sorted({key for tree in known for key in _keys(tree)}) or ["a"]
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    plain = st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(keys), inner, max_size=4),
        max_leaves=8,
    )
    numbers = st.integers(0, 1 << 40)
    inputs = st.binary(max_size=400) | st.builds(to_json, plain) | numbers.map(lambda n: target.make(seed, n))
    if not known:
        return inputs
    return inputs | st.builds(
        lambda tree, number, value: target.encode(placed(tree, Random(number), value), Random(number)),
        st.sampled_from(known), numbers, plain,
    )  # fmt: skip


def placed(tree: Any, rng: Random, value: Any) -> Any:
    """A tree with a value in place of one of its parts."""
    if not isinstance(tree, (dict, list)) or not tree or rng.random() < 0.1:
        return value
    if isinstance(tree, list):
        at = rng.randrange(len(tree))
        return [*tree[:at], placed(tree[at], rng, value), *tree[at + 1 :]]
    key = rng.choice(list(tree))
    return tree | {key: placed(tree[key], rng, value)}


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
    for function in _functions():
        atheris.instrument_func(function)  # in place
    arguments = [
        sys.argv[0], f"-seed={seed + 1}", f"-max_total_time={seconds}", f"-timeout={int(3 * SECONDS)}",
        "-rss_limit_mb=6000",
        "-verbosity=0", "-print_final_stats=0", f"-artifact_prefix={parent}/", "-max_len=65536", str(corpus),
    ]  # fmt: skip
    atheris.Setup(arguments, attempt)
    atheris.Fuzz()


def _functions() -> Iterator[Any]:
    """The functions of resim's modules that are loaded, and the methods of their classes."""
    for name, module in list(sys.modules.items()):
        if not name.startswith("resim."):
            continue
        for value in list(vars(module).values()):
            if getattr(value, "__module__", None) != name:
                continue
            for part in vars(value).values() if isinstance(value, type) else (value,):
                function = inspect.unwrap(part) if callable(part) else part
                if isinstance(function, types.FunctionType) and function.__code__.co_filename == module.__file__:
                    yield function
