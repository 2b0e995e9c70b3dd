"""A soak in a process of its own: what it holds at the end is what it held after the first minute."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

MINUTES = float(os.environ.get("RESIM_SOAK_MINUTES", "1"))
TESTS = Path(__file__).resolve().parents[1]
GROWTH_MB = 64  # what allocators keep of freed memory varies by a few MB from round to round


def test_a_process_that_runs_for_long_holds_what_it_held_after_a_minute() -> None:
    """`RESIM_SOAK_MINUTES` says how long. It is compared with the first round, from the second on, after a minute."""
    with tempfile.TemporaryDirectory(prefix="soak-") as parent:  # a short path, which sockets in it need
        folder = Path(parent, "soak")
        command = [sys.executable, "-m", "faults.soak", "--minutes", str(MINUTES), "--folder", str(folder)]
        deadline = 60 * MINUTES + 600
        done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=False, timeout=deadline)
        assert not folder.exists()
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    rounds = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(rounds) >= 3
    early = next((line for line in rounds[1:-1] if line["seconds"] >= 60), rounds[1])
    last = rounds[-1]
    for name in ("descriptors", "temporary_files", "threads", "children"):
        assert last[name] <= early[name], name
    assert last["shared_memory"] <= early["shared_memory"]
    assert last["resident_mb"] <= early["resident_mb"] + GROWTH_MB
