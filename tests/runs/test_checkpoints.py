"""A checkpoint is written completely or not at all, and code in one is never run."""

from __future__ import annotations

import errno
import io
import os
import pickle
import stat
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from resim.errors import UserError
from resim.runs.checkpoints import load_checkpoint, save_checkpoint, write_atomically


def example() -> dict[str, Any]:
    return {
        "resim": "0",
        "step": 7,
        "recipe": {"name": "x", "levels": ["P4"]},
        "model": {"weight": torch.arange(12, dtype=torch.float32).reshape(3, 4), "position": torch.tensor(5)},
        "half": torch.tensor([1.0, -2.5], dtype=torch.bfloat16),
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.03, "params": [0]}]},
    }


def refused(path: Path) -> str:
    """The error for a file that is no checkpoint: one line that names the file."""
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


# -- writing


def test_a_file_is_written_and_its_folder_created(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    write_atomically(path, lambda file: file.write(b"all of it"))
    assert path.read_bytes() == b"all of it"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_the_old_file_is_replaced_by_a_complete_new_one_only(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    contents: list[bytes] = []

    def write(file: BinaryIO) -> None:
        file.write(b"new, ")
        file.flush()
        contents.append(path.read_bytes())
        file.write(b"and more")

    write_atomically(path, write)
    assert contents == [b"old"]
    assert path.read_bytes() == b"new, and more"


class BrokenError(Exception):
    """Not one of torch's or the system's."""


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (BrokenError(), BrokenError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.ENOSPC, "No space left on device"), UserError),
    ],
    ids=["error", "interrupt", "full-disk"],
)
def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, failure: BaseException, expected: type[BaseException]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write(file: BinaryIO) -> None:
        file.write(b"half of the n")
        raise failure

    with pytest.raises(expected) as caught:
        write_atomically(path, write)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    if expected is UserError:
        assert str(caught.value) == f"{path}: cannot be written (No space left on device)"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"file: cannot be written to \(.+\)"):
        write_atomically(tmp_path / "file" / "last.pt", lambda file: file.write(b"x"))


def test_a_written_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", lambda file: file.write(b"x"))
    finally:
        assert os.umask(before) == 0o027
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


# -- write and read


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    state = example()
    save_checkpoint(tmp_path / "last.pt", state)
    loaded = load_checkpoint(tmp_path / "last.pt")
    assert loaded.keys() == state.keys()
    for name in ("resim", "step", "recipe"):
        assert loaded[name] == state[name]
    assert torch.equal(loaded["model"]["weight"], state["model"]["weight"])
    assert torch.equal(loaded["half"], state["half"])
    assert loaded["half"].dtype == torch.bfloat16
    assert loaded["optimizer"]["param_groups"] == state["optimizer"]["param_groups"]
    assert torch.equal(loaded["optimizer"]["state"][0]["momentum_buffer"], torch.ones(2))


# -- files that are no checkpoints


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.99, 0.999])
def test_a_truncated_checkpoint_is_reported_in_one_line(tmp_path: Path, share: float) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, example())
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert f"{path}: damaged, or no checkpoint ({int(len(data) * share)} bytes; " in refused(path)


@pytest.mark.parametrize("size", [1, 100, 10_000])
def test_a_file_of_zeros_is_reported_in_one_line(tmp_path: Path, size: int) -> None:
    (tmp_path / "last.pt").write_bytes(bytes(size))
    assert f"damaged, or no checkpoint ({size} bytes" in refused(tmp_path / "last.pt")


def test_a_folder_and_a_missing_file_are_reported_in_one_line(tmp_path: Path) -> None:
    assert "Is a directory" in refused(tmp_path)
    assert "No such file" in refused(tmp_path / "none.pt")


class Attack:
    """Runs a command when it is unpickled by Python's own loader."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.victim}",)


@pytest.mark.parametrize("form", ["torch", "torch-legacy", "pickle"])
def test_code_in_a_file_is_not_run(tmp_path: Path, form: str) -> None:
    path, victim = tmp_path / "last.pt", tmp_path / "victim"
    content = {"resim": "0", "model": Attack(victim)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "torch")
    assert ("refused: it imports" if form == "torch" else "damaged, or no checkpoint") in refused(path)
    assert not victim.exists()
    torch.load(io.BytesIO(path.read_bytes()), weights_only=False) if form != "pickle" else pickle.loads(
        path.read_bytes()
    )
    assert victim.exists()  # the attack is a real one


@pytest.mark.parametrize("state", [{"state_dict": {"conv1.weight": torch.ones(1)}}, [1, 2], torch.ones(3)])
def test_a_checkpoint_of_another_program_is_reported_in_one_line(tmp_path: Path, state: object) -> None:
    torch.save(state, tmp_path / "theirs.pt")
    assert "is no checkpoint of resim: resim import reads" in refused(tmp_path / "theirs.pt")
