from __future__ import annotations

import json
import os
import socket
import stat
from pathlib import Path

import pytest

from resim import reading
from resim.reading import NotRegularError, open_descriptor, parse_json, read_file, read_json, special_kind

DEEP = 200_000


def special(folder: Path, kind: str) -> Path:
    """A path that is no regular file: "pipe", "socket", "device", or a link to a pipe."""
    path = folder / f"{kind}.jpg"
    if kind == "device":
        return Path("/dev/zero")
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as server, pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)  # the address of a socket is short
            server.bind(path.name)
        return path
    os.mkfifo(folder / "pipe.jpg")
    if kind == "link":
        path.symlink_to(folder / "pipe.jpg")
    return path


@pytest.mark.parametrize(
    ("kind", "name"),
    [("pipe", "a named pipe"), ("link", "a named pipe"), ("socket", "a socket"), ("device", "a device")],
)
def test_only_regular_files_are_opened_and_nothing_blocks(tmp_path: Path, kind: str, name: str) -> None:
    path = special(tmp_path, kind)
    with pytest.raises(NotRegularError) as error:
        read_file(path)
    assert (error.value.strerror, error.value.filename) == (f"{name}, not a file", str(path))
    assert special_kind(path) == name


def test_a_file_that_becomes_a_pipe_after_it_was_checked_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = tmp_path / "a.jpg", tmp_path / "regular"
    os.mkfifo(path)
    other.write_bytes(b"1")
    status = os.stat(other)  # noqa: PTH116
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0  # noqa: PTH208
    with monkeypatch.context() as patch:
        patch.setattr(reading.os, "stat", lambda _: status)
        with pytest.raises(NotRegularError, match="a named pipe, not a file"):
            open_descriptor(path)
    after = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0  # noqa: PTH208
    assert after == before  # it is closed


def test_a_regular_file_and_a_link_to_one_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert read_file(tmp_path / "a") == read_file(str(tmp_path / "b")) == b"content"
    assert special_kind(tmp_path / "a") == special_kind(tmp_path) == special_kind(tmp_path / "none") == ""
    descriptor = open_descriptor(tmp_path / "a")
    try:
        assert stat.S_ISREG(os.fstat(descriptor).st_mode)
        assert not os.get_inheritable(descriptor)
    finally:
        os.close(descriptor)


def test_a_folder_and_a_missing_file_raise_what_open_raises(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="Is a directory"):
        read_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "none")


@pytest.mark.parametrize("brackets", ["[]", '{"a":}'])
def test_json_nested_too_deeply_is_a_value_error(tmp_path: Path, brackets: str) -> None:
    opening, closing = brackets[:-1], brackets[-1]
    (tmp_path / "deep.json").write_text(opening * DEEP + "1" + closing * DEEP)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(tmp_path / "deep.json")


def test_json_without_enough_memory_is_a_value_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_memory(data: object) -> None:
        raise MemoryError

    monkeypatch.setattr(reading.json, "loads", without_memory)
    with pytest.raises(ValueError, match="more memory than there is"):
        parse_json("[]")


def test_json_in_utf_8_with_and_without_a_mark_and_in_utf_16(tmp_path: Path) -> None:
    content = {"name": "Zürich"}
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "a.json").write_text(json.dumps(content, ensure_ascii=False), encoding=encoding)
        assert read_json(tmp_path / "a.json") == content
