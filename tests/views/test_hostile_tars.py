"""Tars that are damaged or made to harm: a complete list of their images, or one line; little memory, and no hang."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from resim.errors import UserError
from resim.views.decode import BadImageError, Photo
from resim.views.folder import find_images
from resim.views.shards import list_shard, open_image

BLOCK = tarfile.BLOCKSIZE


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    """The header of a member, whatever its size."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    return entry.tobuf(tarfile.GNU_FORMAT)


def with_size(field: bytes) -> bytes:
    """A header whose size field has these 12 bytes, and a right checksum."""
    block = bytearray(header("a.jpg"))
    block[124:136] = field
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


def base_256(number: int) -> bytes:
    return b"\x80" + number.to_bytes(11, "big") if number >= 0 else b"\xff" + (256**11 + number).to_bytes(11, "big")


def refused(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(UserError) as error:
        list_shard(str(path), lambda name: True)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert len(text) < 1000
    return text


@pytest.mark.parametrize("size", [2**63, 2**64, 2**80, -1, -(2**63)])
def test_a_size_beyond_the_file_or_below_zero_is_refused(tmp_path: Path, size: int) -> None:
    text = refused(tmp_path / "a.tar", with_size(base_256(size)) + bytes(2 * BLOCK))
    assert "'a.jpg'" in text or "is not a readable tar file" in text


def test_a_size_that_is_no_number_is_refused(tmp_path: Path) -> None:
    assert "is not a readable tar file" in refused(tmp_path / "a.tar", with_size(b"99999999999\0") + bytes(2 * BLOCK))


@pytest.mark.parametrize("size", [2**63, 2**64, 10**30, -1, -(2**63)])
@pytest.mark.parametrize("key", ["size", "GNU.sparse.realsize", "GNU.sparse.size"])
def test_an_extended_header_with_such_a_size_is_refused(tmp_path: Path, key: str, size: int) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        entry = tarfile.TarInfo("a.jpg")
        entry.pax_headers = {key: str(size)}
        tar.addfile(entry)
    text = refused(tmp_path / "a.tar", packed.getvalue())
    assert "'a.jpg'" in text or "is not a readable tar file" in text


@pytest.mark.parametrize(("offset", "size"), [(512, 2**63), (2**63, 3), (512, 10**30), (-1, 3), (512, -1)])
def test_such_a_size_or_position_in_an_index_is_refused(tmp_path: Path, offset: int, size: int) -> None:
    path = tmp_path / "a.tar"
    index = {"shards": {"a.tar": {"bytes": len(archive(path)), "members": [["a.jpg", offset, size]]}}}
    (tmp_path / "shards.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"a\.tar: is cut off within 'a\.jpg': copy it again"):
        list_shard(str(path), lambda name: True)


@pytest.mark.parametrize(("offset", "size"), [(0, 2**40), (0, 2**62), (512, 2**63), (2**63, 1), (0, 10**19 - 1)])
def test_the_path_of_a_member_beyond_the_tar_takes_no_memory(tmp_path: Path, offset: int, size: int) -> None:
    archive(tmp_path / "a.tar")
    (tmp_path / "list.txt").write_text(f"a.tar!{offset}+{size}!0.jpg\n")
    (path,) = find_images(tmp_path / "list.txt")
    with pytest.raises(OSError, match=r"a\.tar ends before '0\.jpg': copy it again"):
        open_image(path)
    with pytest.raises(BadImageError, match=r"a\.tar ends before '0\.jpg': copy it again"):
        Photo(path)


def test_the_path_of_a_member_with_absurdly_many_digits_is_no_file(tmp_path: Path) -> None:
    archive(tmp_path / "a.tar")
    for name in (f"a.tar!0+{'9' * 5000}!0.jpg", f"a.tar!{'9' * 20}+1!0.jpg"):
        (tmp_path / "list.txt").write_text(f"{name}\n")
        with pytest.raises(UserError, match=r"list\.txt, line 1: .*: there is no such file"):
            find_images(tmp_path / "list.txt")


def test_long_names_without_end_are_refused(tmp_path: Path) -> None:
    block = header("././@LongLink", 4, tarfile.GNUTYPE_LONGNAME) + b"a.jp".ljust(BLOCK, b"\0")
    text = refused(tmp_path / "a.tar", block * 5000 + header("a.jpg") + bytes(2 * BLOCK))
    assert "headers" in text or "header of" in text


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_of_gigabytes_takes_no_memory(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        file.write(header("a", 3 * 2**30, kind))
        file.truncate(4 * 2**30)  # a sparse file
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"a header of 3,221,225,472 bytes"):
            list_shard(str(path), lambda name: True)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_long_name_of_the_usual_kind_is_read(tmp_path: Path) -> None:
    name = "/".join(["folder" * 10] * 5) + "/ä.jpg"
    for number, form in enumerate((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)):
        path = tmp_path / f"{number}.tar"
        with tarfile.open(path, "w", format=form) as tar:
            for index in range(3):
                entry = tarfile.TarInfo(f"{index}/{name}")
                entry.size = 3
                tar.addfile(entry, io.BytesIO(b"abc"))
        members = list_shard(str(path), lambda name: True)
        assert [member.name for member in members] == [f"{index}/{name}" for index in range(3)]
        data = path.read_bytes()
        assert [data[m.offset : m.offset + m.size] for m in members] == [b"abc"] * 3


def archive(path: Path, count: int = 4) -> bytes:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for index in range(count):
            entry = tarfile.TarInfo(f"{index}{'ü' * (60 * (index % 2))}.jpg")
            entry.size = 700
            tar.addfile(entry, io.BytesIO(bytes([index]) * 700))
    return path.read_bytes()


def test_a_damaged_header_behind_the_first_is_no_shorter_list(tmp_path: Path) -> None:
    data = bytearray(archive(tmp_path / "a.tar"))
    place = data.index(b"2.jpg")
    data[place] ^= 1  # the checksum no longer fits
    text = refused(tmp_path / "b.tar", bytes(data))
    assert f"the header at byte {place:,} is damaged: copy the file again" in text


def test_other_archives_and_images_called_tar_are_called_what_they_are(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("a.jpg", b"1")
    assert "is not a readable tar file: a zip archive: unpack it" in refused(tmp_path / "a.tar", packed.getvalue())
    for data, what in (
        (gzip.compress(archive(tmp_path / "b.tar")), "compressed by gzip: decompress it"),
        (b"BZh91AY" + bytes(600), "compressed by bzip2"),
        (b"\xfd7zXZ\0" + bytes(600), "compressed by xz"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "compressed by zstd"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(600), "a 7z archive"),
        (b"Rar!\x1a\x07" + bytes(600), "a RAR archive"),
        (b"\xff\xd8\xff\xe0" + bytes(600), "a JPEG image: rename it"),
        (b"<!DOCTYPE html><html>" + b" " * 600, "a web page, not the image itself"),
        (b"", "an empty file"),
    ):
        assert f"is not a readable tar file: {what}" in refused(tmp_path / "c.tar", data)


def test_an_index_that_is_nested_deeply_or_has_absurd_numbers_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    size = len(archive(path))
    right = list_shard(str(path), lambda name: True)
    absurd = f'{{"shards": {{"a.tar": {{"bytes": {size}, "members": [["a.jpg", 1e999, 1]]}}}}}}'
    for text in ("[" * 100_000, absurd):
        (tmp_path / "shards.json").write_text(text)
        assert list_shard(str(path), lambda name: True) == right


@pytest.mark.parametrize("seed", range(4))
def test_mutated_tars_are_listed_or_refused_in_one_line(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    original = archive(tmp_path / "original.tar")
    path = tmp_path / "a.tar"
    refusals: list[str] = []
    for _ in range(300):
        data = bytearray(original)
        for _ in range(rng.choice((1, 1, 2, 8))):
            place = rng.randrange(len(data))
            kind = rng.randrange(5)
            if kind == 0:
                data[place] = rng.randrange(256)
            elif kind == 1:
                data[place] ^= 1 << rng.randrange(8)
            elif kind == 2:  # a field of the size, with a right checksum
                start = place // BLOCK * BLOCK
                data[start + 124 : start + 136] = base_256(rng.choice((-1, 0, 700, 2**33, 2**62, 2**87)))
                block = data[start : start + 148] + b" " * 8 + data[start + 156 : start + BLOCK]
                data[start + 148 : start + 156] = f"{sum(block):06o}\0 ".encode()[:8]
            elif kind == 3:
                del data[place : place + rng.choice((1, 100, BLOCK))]
            else:
                data[place:place] = original[place // BLOCK * BLOCK :][: rng.choice((1, BLOCK, 3 * BLOCK))]
            if not data:
                break
        path.write_bytes(data)
        try:
            members = list_shard(str(path), lambda name: True)
        except UserError as error:
            refusals.append(str(error))
        else:
            assert all(0 <= m.offset <= m.offset + m.size <= len(data) for m in members)
    assert 0 < len(refusals) < 300
    assert all("\n" not in text and len(text) < 1000 for text in refusals)


def test_a_damaged_tar_is_a_users_error_for_a_folder_too(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(with_size(base_256(2**80)))
    with pytest.raises(UserError, match=r"a.tar: "):
        find_images(tmp_path)


def test_an_index_with_half_a_character_is_refused(tmp_path: Path) -> None:
    data = header("a.jpg", 3) + b"abc".ljust(BLOCK, b"\0") + bytes(2 * BLOCK)
    for half in (b"\xed\xa0\x80", b"\\ud800"):
        member = b'[["' + half + b'/c.jpg", %d, 3]]' % BLOCK
        index = b'{"shards": {"a.tar": {"bytes": %d, "members": %s}}}' % (len(data), member)
        (tmp_path / "shards.json").write_bytes(index)
        assert "'\\ud800/c.jpg' has half a character: pack it again" in refused(tmp_path / "a.tar", data)
