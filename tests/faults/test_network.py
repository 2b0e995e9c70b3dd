"""Two hosts as network namespaces with a link between them: train, lose a host, start again, lose the link.

Needs root and `ip` (iproute2), and is skipped where namespaces are not permitted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from end_to_end.runs import STEPS, Command, Run, numbers, pretrain_words, state
from equal import same
from resim.exit_codes import CRASHED

pytestmark = pytest.mark.long
LINK_SECONDS = 60  # --timeout-minutes 0.2, and what the launchers take to end
NAMES = tuple(f"resim-{os.getpid()}-{side}" for side in "ab")
ADDRESSES = ("10.213.7.1", "10.213.7.2")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def link() -> Iterator[None]:
    """Two namespaces, each with one end of a virtual cable."""
    if shutil.which("ip") is None:
        pytest.skip("not verified: two hosts, for want of `ip`")
    try:
        for name in NAMES:
            ip("netns", "add", name)
        ip("link", "add", "rs-a", "netns", NAMES[0], "type", "veth", "peer", "name", "rs-b", "netns", NAMES[1])
        for name, end, address in zip(NAMES, ("rs-a", "rs-b"), ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"not verified: two hosts, since network namespaces are not permitted ({error.stderr.decode()})")
    yield
    for name in NAMES:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


class Host(Command):
    """A launcher with one process in a namespace."""

    def __init__(self, side: int, images: Path, out: Path, *options: str) -> None:
        launcher = [
            "-m", "resim.distributed.launch", "--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(side),
            "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{ADDRESSES[0]}:29471", "--rdzv-id", out.name,
            "--local-addr", ADDRESSES[side], "--rdzv-conf", f"is_host={int(side == 0)}",
        ]  # fmt: skip
        words = pretrain_words(images, out, "--resume", "auto", *options)
        inside = ["ip", "netns", "exec", NAMES[side]]
        super().__init__(words, launcher, inside, GLOO_SOCKET_IFNAME=f"rs-{'ab'[side]}")

    def kill(self) -> None:
        """Kill the launcher and its process, as a power cut does."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        for pid in (self.pid, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def hosts(images: Path, out: Path, *options: str) -> list[Run]:
    return [Run(Host(side, images, out, *options), out) for side in (0, 1)]


@pytest.fixture(scope="module")
def whole(link: None, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on two hosts that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    ends = [run.end() for run in hosts(images, out)]
    assert [end.code for end in ends] == [0, 0], ends
    return out


@pytest.mark.parametrize("side", [0, 1])  # 0: where the launchers meet
def test_a_host_that_is_killed_is_noticed_and_the_run_started_again(
    whole: Path, images: Path, tmp_path: Path, side: int
) -> None:
    out = tmp_path / "run"
    runs = hosts(images, out, "--checkpoint-minutes", "0")
    runs[0].wait_for_step(2)
    runs[side].started.kill()  # type: ignore[attr-defined]
    runs[side].end()
    survivor = runs[1 - side].end()
    assert survivor.code == CRASHED, survivor
    assert survivor.err.count("ended before the run did; resume with the same command") == 1, survivor.err
    assert "Traceback" not in survivor.err
    ends = [run.end() for run in hosts(images, out)]
    assert [end.code for end in ends] == [0, 0], ends
    assert same(state(out), state(whole))
    assert numbers(out) == numbers(whole)


def test_a_link_that_goes_down_ends_the_run_in_the_time_that_is_set(whole: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    runs = hosts(images, out, "--checkpoint-minutes", "0", "--timeout-minutes", "0.2")
    runs[0].wait_for_step(1)
    ip("-n", NAMES[1], "link", "set", "rs-b", "down")
    try:
        since = time.monotonic()
        while any(processes_of(run) for run in runs) and time.monotonic() < since + LINK_SECONDS:
            time.sleep(0.1)
        assert [processes_of(run) for run in runs] == [
            [],
            [],
        ]  # the trainings have ended; the launchers look for each other
    finally:
        ip("-n", NAMES[1], "link", "set", "rs-b", "up")
        for run in runs:
            if run.started.is_running():
                os.kill(run.pid, signal.SIGTERM)
    ends = [run.end() for run in runs]
    assert all(end.code != 0 for end in ends), ends
    assert any("cannot be reached: the host or its link is down" in end.err for end in ends), ends
    ends = [run.end() for run in hosts(images, out)]
    assert [end.code for end in ends] == [0, 0], ends
    assert state(out)["step"] == STEPS
    assert same(state(out), state(whole))


def processes_of(run: Run) -> list[int]:
    """The processes that train, below a launcher; one that has ended and is not waited for is none."""
    running = []
    with contextlib.suppress(FileNotFoundError):
        for pid in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split():
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X"):
                running.append(int(pid))
    return running
