"""The Slurm script: what it starts, and what it does with each exit code. `srun` and `scontrol` are pretended."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "slurm.sbatch"
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then printf 'a\\nb\\n'; else echo "$@" >> "$LOG/scontrol"; fi
"""
ENDS = """#!/bin/bash
echo "$@" > "$LOG/srun"
exit "$CODE"
"""
WAITS = """#!/bin/bash
trap 'echo USR1 >> "$LOG/signals"; exit "$CODE"' USR1
touch "$LOG/ready"
: < "$LOG/pipe" # the trap is set
while :; do sleep 0.05; done # until the signal
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "bin").mkdir()
    log = tmp_path / "log"
    log.mkdir()
    slurm = {"SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "[a-b]", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8"}
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    return os.environ | slurm | {"PATH": path, "LOG": str(log)}


def pretend(environment: dict[str, str], srun: str) -> Path:
    """Write the commands; returns the folder of what they note."""
    folder = Path(environment["PATH"].partition(":")[0])
    for name, text in (("srun", srun), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return Path(environment["LOG"])


def requeued(log: Path) -> bool:
    path = log / "scontrol"
    return path.exists() and path.read_text() == "requeue 41\n"


@pytest.mark.parametrize(
    ("code", "is_requeued", "ends", "says"),
    [
        (0, False, 0, "finished"),
        (75, True, 0, "stopped and saved: queued again"),
        (2, False, 2, "the run cannot start"),
        (1, False, 1, "ended with code 1; not queued again"),
        (137, False, 137, "ended with code 137"),
    ],
)
def test_a_run_is_queued_again_where_it_was_stopped_and_saved(
    environment: dict[str, str], code: int, is_requeued: bool, ends: int, says: str
) -> None:
    log = pretend(environment, ENDS)
    words = ["bash", str(SCRIPT), "photos", "runs/a", "--recipe", "quick"]
    done = subprocess.run(words, env=environment | {"CODE": str(code)}, capture_output=True, text=True, timeout=60)
    assert (done.returncode, requeued(log), done.stderr) == (ends, is_requeued, "")
    assert says in done.stdout
    started = (log / "srun").read_text()
    assert "python -m resim.distributed.launch --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d" in started
    assert "--rdzv-endpoint a:20041 --rdzv-id 41.0" in started
    assert started.rstrip().endswith("-m resim pretrain photos --out runs/a --resume auto --recipe quick")


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_the_signal_before_the_end_of_the_time_reaches_the_run(
    environment: dict[str, str], number: signal.Signals
) -> None:
    log = pretend(environment, WAITS)
    os.mkfifo(log / "pipe")
    script = subprocess.Popen(
        ["bash", str(SCRIPT), "photos", "runs/a"], env=environment | {"CODE": "75"}, stdout=subprocess.PIPE, text=True
    )
    with (log / "pipe").open("w"):  # opens when the pretended srun reads
        script.send_signal(number)
        out, _ = script.communicate(timeout=60)
    assert (log / "signals").read_text() == "USR1\n"
    assert "stopped and saved: queued again" in out
    assert (script.returncode, requeued(log)) == (0, True)


def test_the_script_asks_slurm_for_the_signal_and_the_requeue() -> None:
    text = SCRIPT.read_text()
    assert "#SBATCH --signal=B:USR1@120\n" in text
    assert "#SBATCH --requeue\n" in text
    assert subprocess.run(["bash", "-n", str(SCRIPT)]).returncode == 0
