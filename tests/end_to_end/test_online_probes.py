"""Probes in a run of two processes: the first looks, the second waits, and the weights are those of a run without."""

from __future__ import annotations

import json
from pathlib import Path

from runs import TORCHRUN, Run, numbers, same, state


def test_two_processes_with_probes_are_two_without(images: Path, tmp_path: Path) -> None:
    plain, probed = tmp_path / "plain", tmp_path / "probed"
    probes = ("--probe-every", "1", "--probe-images", "8")
    assert Run(images, plain, "--stop-after", "4", launcher=TORCHRUN).end().code == 0
    ended = Run(images, probed, "--stop-after", "4", *probes, launcher=TORCHRUN).end()
    assert ended.code == 0, ended.err
    assert ended.out.count("probes before the first step: P4 finds ") == 1  # one of them prints
    assert ended.out.count("probes after epoch 1: ") == 1
    assert same(state(probed)["model"], state(plain)["model"])
    assert same(state(probed)["optimizer"], state(plain)["optimizer"])
    assert numbers(probed) == numbers(plain)
    steps = [json.loads(line)["step"] for line in (probed / "probes.jsonl").read_text().splitlines()]
    assert steps == [0, 3]


def test_probe_data_that_is_not_there_ends_all_processes(images: Path, tmp_path: Path) -> None:
    out, gone = tmp_path / "run", tmp_path / "gone"
    ended = Run(images, out, "--probe-every", "1", "--probe-data", str(gone), launcher=TORCHRUN).end()
    assert ended.code != 0
    assert ended.err.count(f"resim pretrain: {gone}: there is no such folder or file") == 1
