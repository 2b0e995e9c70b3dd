"""The checkpoint from which a run continues: the newest whole one, and what is said of the others."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from resim.distributed.processes import Processes
from resim.errors import UserError
from resim.recipes import moco_v2, resim_fpn
from resim.runs import checkpoints
from resim.runs.checkpoints import load_checkpoint, save_checkpoint
from resim.runs.config import RunConfig
from resim.runs.folder import check_folder, check_run, record_resume, save_state, should_resume, write_config
from resim.runs.resume import Resumed, read_resumed

ALONE = Processes(rank=0, count=1, device=torch.device("cpu"), cores=1)
RECIPE = moco_v2()


def state(step: int) -> dict[str, Any]:
    return {"resim": "0", "recipe": RECIPE.to_json(), "step": step, "model": {"a": torch.full((64,), float(step))}}


def save(out: Path, **steps: int) -> None:
    for name, step in steps.items():
        save_checkpoint(out / "checkpoints" / f"{name}.pt", state(step))


def damage(out: Path, *names: str) -> None:
    for name in names:
        path = out / "checkpoints" / f"{name}.pt"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 16
        path.write_bytes(data)


def read(out: Path, **changes: int) -> Resumed:
    steps = {"start": 0, "first_save": 100, "end": 400} | changes
    return read_resumed(out, RECIPE, ALONE, **steps)


def refusal(out: Path, **changes: int) -> str:
    with pytest.raises(UserError) as caught:
        read(out, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("damaged", "gone", "name", "step", "said"),
    [
        ([], [], "last", 150, []),
        (["previous", "epoch_0001"], [], "last", 150, []),
        (["last"], [], "previous", 120, ["last.pt is damaged (its SIZE bytes do not match the checksum at its end)"]),
        ([], ["last"], "previous", 120, ["last.pt is missing"]),
        (["previous"], ["last"], "epoch_0001", 100, [
            "previous.pt is damaged (its SIZE bytes do not match the checksum at its end)", "last.pt is missing",
        ]),
        ([], ["last", "previous"], "epoch_0001", 100, ["last.pt is missing"]),
        (["last", "previous", "epoch_0001"], [], "epoch_0000", 50, [
            f"{name}.pt is damaged (its SIZE bytes do not match the checksum at its end)"
            for name in ("last", "previous", "epoch_0001")
        ]),
    ],
)  # fmt: skip
def test_the_newest_whole_checkpoint_is_read(
    damaged: list[str], gone: list[str], name: str, step: int, said: list[str], tmp_path: Path
) -> None:
    save(tmp_path, epoch_0000=50, epoch_0001=100, previous=120, last=150)
    size = (tmp_path / "checkpoints" / "last.pt").stat().st_size
    damage(tmp_path, *damaged)
    for missing in gone:
        (tmp_path / "checkpoints" / f"{missing}.pt").unlink()
    resumed = read(tmp_path)
    assert resumed.state is not None
    assert resumed.file == tmp_path / "checkpoints" / f"{name}.pt"
    assert resumed.state["step"] == step
    assert torch.equal(resumed.state["model"]["a"], torch.full((64,), float(step)))
    expected = [f"checkpoints/{line.replace('SIZE', str(size))}" for line in said]
    if expected:
        expected[-1] += f"; resumes from checkpoints/{name}.pt, step {step} of 400"
    assert list(resumed.lines) == expected


def test_a_kept_epoch_that_is_newer_than_the_last_but_one_is_read(tmp_path: Path) -> None:
    """A run that is killed between the two: the epoch is kept first."""
    save(tmp_path, previous=150, epoch_0002=200, last=180)
    damage(tmp_path, "last")
    resumed = read(tmp_path)
    assert resumed.file == tmp_path / "checkpoints" / "epoch_0002.pt"


def test_if_none_is_whole_all_are_named(tmp_path: Path) -> None:
    save(tmp_path, epoch_0001=100, previous=120, last=150)
    damage(tmp_path, "epoch_0001", "previous", "last")
    (tmp_path / "checkpoints" / "last.pt").write_bytes(bytes(5))
    message = refusal(tmp_path)
    assert message.startswith(f"--resume: no checkpoint in {tmp_path / 'checkpoints'} is whole: last.pt (5 bytes; ")
    assert re.search(r"; previous.pt \(its \d+ bytes .+\); epoch_0001.pt \(its .+\): restore one of them", message)


def test_a_sector_that_cannot_be_read_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, previous=120, last=150)
    whole = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path.name == "last.pt":
            raise OSError(5, "Input/output error")
        return whole(path)

    monkeypatch.setattr(checkpoints.Path, "read_bytes", read_bytes)
    assert read(tmp_path).lines == (
        "checkpoints/last.pt is damaged (cannot be read (Input/output error)); resumes from checkpoints/previous.pt, "
        "step 120 of 400",
    )


@pytest.mark.parametrize(("error", "reason"), [(PermissionError(13, "Permission denied"), "Permission denied"),
                                               (MemoryError(), "there is no memory to read its")])  # fmt: skip
def test_a_file_that_may_be_whole_is_not_passed_over(
    error: Exception, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, previous=120, last=150)

    def read_bytes(path: Path) -> bytes:
        raise error

    monkeypatch.setattr(checkpoints.Path, "read_bytes", read_bytes)
    assert reason in refusal(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"recipe": resim_fpn().to_json()}, "last.pt: is of another recipe: "),
        ({"recipe": {"name": "x"}}, "last.pt: is no checkpoint of a run of this kind"),
        ({"step": "7"}, "last.pt: has no number of steps, but '7'"),
    ],
)
def test_a_whole_checkpoint_of_another_run_is_refused(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    save(tmp_path, previous=120)
    save_checkpoint(tmp_path / "checkpoints" / "last.pt", state(150) | change)
    assert reason in refusal(tmp_path)


def test_a_run_without_a_checkpoint_starts_again_only_if_it_wrote_none(tmp_path: Path) -> None:
    folder, metrics = tmp_path / "checkpoints", tmp_path / "metrics.jsonl"
    first = f"{folder} has no checkpoint yet; starts from the beginning, step 0"
    assert read(tmp_path) == Resumed(state=None, file=None, damaged=(), lines=(first,))
    metrics.write_text("".join(f'{{"step": {step}}}\n' for step in range(100)))
    assert read(tmp_path).lines == (f"{first}; 100 steps in metrics.jsonl will be repeated",)
    with metrics.open("a") as file:
        file.write('{"step": 100}\n')
    assert refusal(tmp_path) == (
        f"--resume: {folder} has no checkpoint, though {metrics} has steps up to 100 and one was written after step "
        "100 at the latest: restore last.pt, or name another --out"
    )
    (line,) = read(tmp_path, start=50, first_save=150).lines
    assert line.endswith("starts from the beginning, step 50; 51 steps in metrics.jsonl will be repeated")


def test_processes_that_read_different_checkpoints_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, last=150)
    monkeypatch.setattr(Processes, "gather_objects", lambda processes, value: [value, ("previous.pt", 120)])
    message = refusal(tmp_path)
    assert "the processes read different checkpoints" in message
    assert "last.pt (step 150), previous.pt (step 120)" in message


# -- what is written


def test_the_last_but_one_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step in (10, 20, 30):
        save_state(tmp_path, state(step), keep_as="epoch_0001.pt" if step == 20 else None)
    steps = {path.name: load_checkpoint(path)["step"] for path in folder.iterdir()}
    assert steps == {"last.pt": 30, "previous.pt": 20, "epoch_0001.pt": 20}


def test_a_file_system_without_hard_links_keeps_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(checkpoints.Path, "hardlink_to", refuse)
    test_the_last_but_one_is_kept(tmp_path)


def test_a_full_disk_names_the_file_and_keeps_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (10, 20):
        save_state(tmp_path, state(step))

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.os, "fsync", fail)
    last = tmp_path / "checkpoints" / "last.pt"
    with pytest.raises(UserError) as caught:
        save_state(tmp_path, state(30))
    assert str(caught.value) == f"{last}: cannot be written (No space left on device)"
    steps = {path.name: load_checkpoint(path)["step"] for path in last.parent.iterdir()}
    assert steps == {"last.pt": 20, "previous.pt": 10}


def test_a_damaged_checkpoint_is_renamed_and_the_last_one_restored(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    save(tmp_path, previous=120, last=150)
    damage(tmp_path, "last")
    damaged = (folder / "last.pt").read_bytes()
    record_resume(tmp_path, read(tmp_path))
    assert (folder / "last.pt.damaged").read_bytes() == damaged
    assert (folder / "last.pt").read_bytes() == (folder / "previous.pt").read_bytes()
    (resumed,) = map(json.loads, (tmp_path / "resumed.jsonl").read_text().splitlines())
    assert [resumed[name] for name in ("step", "checkpoint", "damaged")] == [120, "previous.pt", ["last.pt"]]
    save_state(tmp_path, state(160))
    assert load_checkpoint(folder / "previous.pt")["step"] == 120
    assert read(tmp_path).lines == ()


OURS = (
    ".config.json.a1b2c3d4.tmp", ".metrics.jsonl.a1b2c3d4.tmp", ".bad_files.txt.a1b2c3d4.tmp", ".curves.png.4711.tmp",
    "checkpoints/.last.pt._1b2c3d4.tmp", "checkpoints/.previous.pt.4711.tmp", "checkpoints/.epoch_0020.pt.a1b2c3d4.tmp",
    "pictures/.epoch_0001.png.a1b2c3d4.tmp",
)  # fmt: skip
OTHERS = (
    ".probe.json.a1b2c3d4.tmp", ".notes.tmp", "last.pt.tmp", ".last.pt.a1b2c3d4.tmp~", "notes/.curves.png.a1.tmp",
    "checkpoints/.mine.pt.a1b2c3d4.tmp", "checkpoints/.last.pt.a-b.tmp", "notes/.last.pt.a1b2c3d4.tmp",
)  # fmt: skip


@pytest.mark.parametrize("is_new", [True, False])
def test_temporary_files_of_a_killed_run_are_removed_and_no_others(is_new: bool, tmp_path: Path) -> None:
    save(tmp_path, last=150)
    for name in (*OURS, *OTHERS):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    if is_new:
        write_config(tmp_path, RECIPE, RunConfig(), {})
    else:
        record_resume(tmp_path, read(tmp_path))
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == b"half"]
    left = {path.relative_to(tmp_path).as_posix() for path in files}
    assert left == set(OTHERS)


# -- the folder


def test_a_folder_whose_config_is_gone_says_so(tmp_path: Path) -> None:
    save(tmp_path, last=150)
    what = (
        f"{tmp_path} contains checkpoints/last.pt but no config.json, so the run is incomplete and is not overwritten: "
        "restore config.json, or name another --out"
    )
    with pytest.raises(UserError) as caught:
        check_folder(tmp_path, resume=True)
    assert str(caught.value) == f"--resume: {what}"
    with pytest.raises(UserError) as caught:
        should_resume(tmp_path, "auto")
    assert str(caught.value) == f"--resume auto: {what}"
    with pytest.raises(UserError, match="already contains a run"):
        check_run(tmp_path, RECIPE, resume=False)


def test_an_empty_folder_has_no_run(tmp_path: Path) -> None:
    assert not should_resume(tmp_path, "auto")
    check_run(tmp_path, RECIPE, resume=False)
    with pytest.raises(UserError, match=r"contains no run \(no config.json\); leave --resume out to start one there"):
        check_folder(tmp_path, resume=True)
