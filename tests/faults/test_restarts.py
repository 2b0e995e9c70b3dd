"""Runs of several processes that lose one, or a host: noticed, named, started again, and the same end bit for bit."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from end_to_end.runs import STEPS, TORCHRUN, Command, Run, numbers, pretrain_run, pretrain_words, state
from equal import same
from resim.exit_codes import CRASHED, STOPPED, USER_ERROR
from resim.runs.checkpoints import load_checkpoint

pytestmark = pytest.mark.slow
LAUNCH = ["-m", "resim.distributed.launch", "--standalone", "--nproc-per-node", "2"]
KILLS = int(os.environ.get("RESIM_KILLS", "3"))
SAVING = ("--checkpoint-minutes", "0")


def start(launcher: Sequence[str], images: Path, out: Path, *options: str) -> Run:
    return Run(Command(pretrain_words(images, out, *options), launcher), out)


def ranks(run: Run) -> dict[int, int]:
    """The process of each rank, below a launcher."""
    found = {}
    for pid in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split():
        with contextlib.suppress(OSError):  # it has ended
            words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            found |= {int(word[5:]): int(pid) for word in words if word.startswith(b"RANK=")}
    return found


@pytest.fixture(scope="module")
def two(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on two processes that nothing interrupted."""
    out = tmp_path_factory.mktemp("two") / "run"
    assert pretrain_run(images, out, processes=2).end().code == 0
    return out


def is_end_of(out: Path, whole: Path) -> bool:
    return same(state(out), state(whole)) and numbers(out) == numbers(whole)


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.long)])
def test_torchrun_starts_again_after_the_loss_of_any_process(
    two: Path, images: Path, tmp_path: Path, rank: int
) -> None:
    out = tmp_path / "run"
    run = start([*TORCHRUN, "--max-restarts", "1"], images, out, "--resume", "auto", *SAVING)
    run.wait_for_step(2)
    os.kill(ranks(run)[rank], signal.SIGKILL)
    ended = run.end()
    assert ended.code == 0, ended.err
    assert is_end_of(out, two)
    assert f"resim pretrain: rank {rank} (process " in ended.err
    assert ended.err.count("ended before the run did; resume with the same command and --resume auto") == 1
    assert "Traceback" not in ended.err


def test_a_lost_process_is_reported_in_our_words(images: Path, tmp_path: Path) -> None:
    run = start(LAUNCH, images, tmp_path / "run")
    run.wait_for_step(1)
    pid = ranks(run)[1]
    os.kill(pid, signal.SIGKILL)
    ended = run.end()
    assert ended.code == CRASHED
    assert f"resim: rank 1 (process {pid}) was killed by SIGKILL; resume with the same command" in ended.err
    assert not any(word in ended.err for word in ("Traceback", "gloo", "GLHF", "Warning"))


@pytest.mark.parametrize("to", ["launcher", "one process"])
def test_the_launcher_says_that_a_run_is_stopped_and_saved(two: Path, images: Path, tmp_path: Path, to: str) -> None:
    out = tmp_path / "run"
    run = start([*LAUNCH, "--max-restarts", "1"], images, out, "--resume", "auto")
    run.wait_for_step(1)
    os.kill(run.pid if to == "launcher" else ranks(run)[1], signal.SIGUSR1)
    ended = run.end()
    assert (ended.code, "Traceback" in ended.err) == (STOPPED, False), ended.err
    assert 2 <= state(out)["step"] < STEPS
    assert pretrain_run(images, out, "--resume", "auto", processes=2).end().code == 0
    assert is_end_of(out, two)


def test_the_launcher_passes_on_an_error_of_the_user(images: Path, tmp_path: Path) -> None:
    ended = start(LAUNCH, images, tmp_path / "run", "--group-size", "8").end()
    assert ended.code == USER_ERROR
    assert ended.err.count("\n") == ended.err.count("resim pretrain: a batch of 8 over 2 processes") == 1


def test_a_process_that_hangs_ends_the_run_in_the_time_that_is_set(images: Path, tmp_path: Path) -> None:
    run = start(LAUNCH, images, tmp_path / "run", "--timeout-minutes", "0.2")  # one may start late
    run.wait_for_step(1)
    pid = ranks(run)[1]
    os.kill(pid, signal.SIGSTOP)  # as a link that is down: it neither answers nor ends
    run_ends = time.monotonic() + 120
    while 0 in ranks(run) and time.monotonic() < run_ends:
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)  # torchrun would wait for it
    ended = run.end()
    assert ended.code == CRASHED
    assert "no answer from another process within --timeout-minutes 0.2, though all of them run" in ended.err
    assert "gloo" not in ended.err


# -- two hosts: two launchers on this machine, which meet over the network


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def hosts(images: Path, out: Path, *options: str) -> list[Run]:
    """Two launchers with one process each."""
    place = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{free_port()}", "--rdzv-id", out.parent.name]
    launcher = ["-m", "resim.distributed.launch", "--nnodes", "2", "--nproc-per-node", "1", *place]
    return [start(launcher, images, out, "--resume", "auto", *options) for _ in range(2)]


@pytest.fixture(scope="module")
def lost(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int], str]:
    """The folder of a run on two hosts of which one was killed; the exit codes; the errors of the other."""
    out = tmp_path_factory.mktemp("hosts") / "run"
    runs = hosts(images, out, *SAVING)
    runs[0].wait_for_step(2)
    victim = next(run for run in runs if 0 not in ranks(run))  # the other one has the first process
    pids = [victim.pid, *ranks(victim).values()]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    ended = [run.end() for run in runs]
    survivor = ended[1 - runs.index(victim)]
    return out, [survivor.code], survivor.err


def test_a_host_that_is_killed_is_noticed(lost: tuple[Path, list[int], str]) -> None:
    _, codes, errors = lost
    assert codes == [CRASHED]
    assert "resim pretrain: rank 1 (process " in errors
    assert "ended before the run did; resume with the same command" in errors


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on two hosts that nothing interrupted; each process has more threads than in `two`."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert [run.end().code for run in hosts(images, out)] == [0, 0]
    return out


def test_two_hosts_resume_with_the_same_results(
    lost: tuple[Path, list[int], str], whole: Path, images: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(lost[0], tmp_path / "run"))
    assert [run.end().code for run in hosts(images, out)] == [0, 0]
    assert is_end_of(out, whole)


def test_another_number_of_processes_resumes_what_two_hosts_began(
    lost: tuple[Path, list[int], str], whole: Path, images: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(lost[0], tmp_path / "run"))
    done = state(out)["step"]
    assert pretrain_run(images, out, "--resume").end().code == 0
    assert state(out)["step"] == STEPS
    ours, theirs = numbers(out), numbers(whole)
    assert ours[:done] == theirs[:done]
    assert ours[done]["loss/total"] == pytest.approx(theirs[done]["loss/total"], rel=1e-3)  # then rounding grows


# -- kills at random moments


def test_a_run_that_is_killed_again_and_again_ends_as_if_it_never_was(two: Path, images: Path, tmp_path: Path) -> None:
    """`RESIM_KILLS` says how often; a random process of both, or both, at a random moment of a random step."""
    out = tmp_path / "run"
    generator = random.Random(7)
    kills = 0
    while kills < KILLS:
        last = out / "checkpoints" / "last.pt"
        done = load_checkpoint(last)["step"] if last.exists() else 0
        if done >= STEPS - 2:  # begin again, so that every kill meets a run
            shutil.rmtree(out)
            done = 0
        run = pretrain_run(images, out, "--resume", "auto", *SAVING, processes=2)
        run.wait_for_step(done)  # of this start, or of the one before: then it is killed while it starts
        time.sleep(generator.uniform(0, 0.5))
        both = run.started._processes  # type: ignore[attr-defined]
        for process in generator.choice([both, both[:1], both[1:]]):
            process.kill()
        for process in both:  # one that waits for the other at the start is ended, as torchrun does
            process.join(5)
            process.kill()
        kills += run.end().code != 0  # a fast machine may have ended it before
    assert pretrain_run(images, out, "--resume", "auto", processes=2).end().code == 0
    assert is_end_of(out, two)
