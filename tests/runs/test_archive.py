"""A flipped bit anywhere in a checkpoint is noticed, or changes nothing that is read."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

from resim.errors import UserError
from resim.exchange.files.contents import read_contents, tensors_in
from resim.runs.archive import ArchiveWriter, DamagedError, check_archive
from resim.runs.checkpoints import load_checkpoint, save_checkpoint

STATE: dict[str, Any] = {"resim": "0", "step": 7, "model": {"a": torch.arange(8.0), "b": torch.arange(3)}}


def is_right(state: dict[str, Any]) -> bool:
    return (
        list(state) == list(STATE)
        and (state["resim"], state["step"]) == ("0", 7)
        and all(torch.equal(state["model"][name], value) for name, value in STATE["model"].items())
    )


def flipped(data: bytes, place: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[place] ^= 1 << bit
    return bytes(changed)


def test_every_flipped_bit_is_noticed_or_harmless(tmp_path: Path) -> None:
    """One bit of each byte, so that all eight places take part; the bits that change nothing are in the comment."""
    path = tmp_path / "last.pt"
    save_checkpoint(path, STATE)
    data = path.read_bytes()
    harmless = []
    for place in range(len(data)):
        path.write_bytes(flipped(data, place, place % 8))
        try:
            state = load_checkpoint(path)
        except DamagedError:
            continue
        assert is_right(state)
        harmless.append(place)
    assert harmless
    assert min(harmless) >= len(data) - 20


def test_a_checkpoint_without_a_checksum_of_the_whole_is_compared_member_by_member(tmp_path: Path) -> None:
    """As earlier versions wrote it: every fifth byte of it."""
    path = tmp_path / "last.pt"
    torch.save(STATE, path)
    data = path.read_bytes()
    weights = data.index(STATE["model"]["a"].numpy().tobytes())
    noticed = []
    for place in [*range(0, len(data), 5), *range(weights, weights + 32)]:
        path.write_bytes(flipped(data, place, place % 8))
        try:
            state = load_checkpoint(path)
        except DamagedError:
            noticed.append(place)
        else:
            assert is_right(state)
    assert set(range(weights, weights + 32)) <= set(noticed)


def test_the_checksum_is_that_of_what_torch_wrote(tmp_path: Path) -> None:
    plain = io.BytesIO()
    torch.save(STATE, plain)
    with (tmp_path / "file").open("wb") as file:
        writer = ArchiveWriter(file)
        half = len(plain.getvalue()) // 2
        assert writer.write(plain.getvalue()[:half]) == half
        writer.write(plain.getvalue()[half:])
        writer.write_checksum()
    data = (tmp_path / "file").read_bytes()
    comment = b"resim:crc32:%08x" % zlib.crc32(plain.getvalue())
    assert data == plain.getvalue()[:-2] + b"\x14\x00" + comment
    assert zipfile.ZipFile(io.BytesIO(data)).comment == comment
    with (tmp_path / "file").open("rb") as file:
        assert check_archive(file, tmp_path)
        assert file.tell() == 0
    assert not check_archive(plain, tmp_path)


def test_other_readers_read_a_checkpoint_with_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, STATE)
    assert is_right(torch.load(path, weights_only=True))
    assert is_right(torch.load(path, weights_only=True, mmap=True))
    contents = read_contents(path)
    tensors, _ = tensors_in(contents, contents.data["model"])
    assert torch.equal(tensors["a"], STATE["model"]["a"])


def test_weights_to_start_from_are_compared_too(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, STATE)
    path.write_bytes(flipped(path.read_bytes(), 40, 3))
    message = f"{path}: damaged: its {path.stat().st_size} bytes do not match the checksum at its end"
    with pytest.raises(UserError, match=re.escape(message)):
        read_contents(path)


def test_an_archive_that_is_none_gets_no_checksum(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        writer = ArchiveWriter(file)
        writer.write(bytes(100))
        with pytest.raises(ValueError, match="wrote no zip archive"):
            writer.write_checksum()


@pytest.mark.parametrize("missing", [1, 10, 20, 21, 22, 30, 42, 43])
def test_an_archive_without_its_end_is_damaged(tmp_path: Path, missing: int) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, STATE)
    path.write_bytes(path.read_bytes()[:-missing])
    with pytest.raises(DamagedError, match="damaged, or no checkpoint"):
        load_checkpoint(path)
