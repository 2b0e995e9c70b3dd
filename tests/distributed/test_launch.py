"""The exit code of a run of several processes, from what each of them reports."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.distributed.elastic.rendezvous import RendezvousConnectionError

from resim import exit_codes
from resim.distributed import launch
from resim.distributed.launch import joint_code


@pytest.mark.parametrize(
    ("codes", "has_failed", "is_killed", "expected"),
    [
        ([0, 0], False, False, 0),
        ([75, 75], False, False, 75),
        ([2, 2], True, False, 2),
        ([2], True, False, 2),  # the other one was ended by torchrun
        ([1], True, True, 1),
        ([], True, True, 1),
        ([2], True, True, 1),
        ([], False, False, 1),  # none has come so far
    ],
)
def test_the_joint_code(codes: list[int], has_failed: bool, is_killed: bool, expected: int) -> None:
    assert joint_code(codes, has_failed=has_failed, is_killed=is_killed) == expected


def test_processes_leave_their_codes_for_the_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(exit_codes.FOLDER, str(tmp_path))
    for start, rank, code in (("0", "0", 1), ("0", "1", 2), ("1", "0", 75), ("1", "1", 75)):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", start)
        monkeypatch.setenv("RANK", rank)
        assert exit_codes.report(code) == (0 if code == 75 else code)  # torchrun starts others again
    assert exit_codes.reported(tmp_path) == [75, 75]


def test_without_the_launcher_the_code_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(exit_codes.FOLDER, raising=False)
    assert [exit_codes.report(code) for code in (0, 1, 2, 75)] == [0, 1, 2, 75]


def test_launchers_that_lose_each_other_end_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lose(words: list[str]) -> None:
        raise RendezvousConnectionError("The connection to the C10d store has failed.\nmore")

    monkeypatch.setattr(launch.torchrun, "main", lose)
    monkeypatch.setenv(exit_codes.FOLDER, "")  # which `main` sets
    assert launch.main(["-m", "resim"]) == exit_codes.CRASHED
    assert capsys.readouterr().err == (
        "resim: the launchers of the hosts did not meet, or do not reach each other any more "
        "(The connection to the C10d store has failed.): "
        "start all of them again with the same command and --resume auto\n"
    )
