"""Shards contain the images byte for byte and are read in place and in their order; tars of others are checked."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from resim.cli.main import main
from resim.errors import UserError
from resim.views.crops import ViewsConfig
from resim.views.decode import BadImageError, Photo
from resim.views.folder import find_images
from resim.views.loader import BatchOrder, PairBatch, PairDataset, make_loader, read_batches
from resim.views.pack import PackConfig, pack
from resim.views.shards import Member, member_path, open_image, shard_order, split_member_path

COUNT = 40


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images of random pixels, 7 to 30 kB each, in folders and with difficult names."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        name = ["a b", "dots.in.name", "Gro\u00dfe Stra\u00dfe", "plain"][i % 4]
        path = folder / str(i % 3) / f"{name}-{i}.{('jpg', 'png', 'JPEG')[i % 3]}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (60 + i, 120 - i, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def packed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in shards of little more than 100 kB."""
    out = tmp_path_factory.mktemp("packed") / "shards"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PackConfig, "__post_init__", lambda self: None)
        pack(find_images(images), out, PackConfig(shard_mb=0.1))  # type: ignore[arg-type]
    return out


def contents(path: Any) -> list[bytes]:
    """The bytes of every image."""
    found = []
    for name in find_images(path):
        with open_image(name) as file:
            found.append(file.read())
    return found


# -- packing


def test_every_image_is_in_one_shard_byte_for_byte_and_shuffled(images: Path, packed: Path) -> None:
    before, after = contents(images), contents(packed)
    assert sorted(before) == sorted(after)
    assert before != after
    assert len(list(packed.glob("*.tar"))) > 3
    assert find_images(packed).shards == tuple(
        len(entry["members"]) for entry in json.loads((packed / "shards.json").read_text())["shards"].values()
    )


def test_shards_have_the_layout_of_webdataset(packed: Path) -> None:
    keys = []
    for shard in sorted(packed.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for entry in tar:
                data = tar.extractfile(entry)
                assert data is not None
                Image.open(io.BytesIO(data.read())).verify()
                key, ending = entry.name.split(".", 1)  # a key ends at the first dot
                assert ending in ("jpg", "png", "jpeg")
                keys.append(key)
    assert [key[:9] for key in keys] == [f"{i:09d}" for i in range(COUNT)]


def test_without_the_index_the_same_images_are_listed(packed: Path, tmp_path: Path) -> None:
    for shard in packed.glob("*.tar"):
        (tmp_path / shard.name).write_bytes(shard.read_bytes())
    alone, indexed = find_images(tmp_path), find_images(packed)
    assert [p.removeprefix(str(tmp_path)) for p in alone] == [p.removeprefix(str(packed)) for p in indexed]
    assert alone.shards == indexed.shards
    assert alone.fingerprint() == indexed.fingerprint()


def test_an_index_of_other_files_is_not_used(packed: Path, tmp_path: Path) -> None:
    shard = tmp_path / "shard-000000.tar"
    shard.write_bytes((packed / "shard-000001.tar").read_bytes())
    (tmp_path / "shards.json").write_bytes((packed / "shards.json").read_bytes())
    assert contents(tmp_path) == contents(packed / "shard-000001.tar")
    members = [["a.jpg", -512, 100]]
    index = {"shards": {shard.name: {"bytes": shard.stat().st_size, "members": members}}}
    (tmp_path / "shards.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"is cut off within 'a.jpg'"):
        find_images(tmp_path)


def test_large_images_are_reduced_and_upright_and_small_ones_unchanged(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # the file lies on its side
    Image.new("RGB", (300, 200), (200, 30, 30)).save(tmp_path / "in" / "large.jpg", exif=exif)
    Image.new("RGB", (60, 50), (30, 200, 30)).save(tmp_path / "in" / "small.png")
    pack(find_images(tmp_path / "in"), tmp_path / "out", PackConfig(resize=64))
    sizes = {}
    for path in find_images(tmp_path / "out"):
        photo = Photo(path)
        sizes[path.rpartition("-")[2]] = (photo.width, photo.height)
        colour = np.asarray(photo.decode())[5, 5]
        assert np.abs(colour.astype(int) - ((200, 30, 30) if path.endswith("large.jpg") else (30, 200, 30))).max() < 6
    assert sizes == {"large.jpg": (64, 96), "small.png": (60, 50)}


def test_files_that_are_not_images_are_omitted_and_listed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "text.jpg").write_text("no picture\n")
    with pytest.raises(UserError, match=r"none of 1 image can be read, for example .*text.jpg \(Unidentified"):
        pack(find_images(tmp_path / "in"), tmp_path / "out", PackConfig())
    assert [path.name for path in tmp_path.iterdir()] == ["in"]  # no unfinished files remain
    Image.new("RGB", (9, 9)).save(tmp_path / "in" / "good.png")
    done = pack(find_images(tmp_path / "in"), tmp_path / "out", PackConfig())
    assert (done.images, done.shards, len(done.bad)) == (1, 1, 1)
    assert "text.jpg\tUnidentified" in (tmp_path / "out" / "bad_files.txt").read_text()


def test_what_a_killed_process_left_is_in_nobodys_way(images: Path, tmp_path: Path) -> None:
    """In a container the next process has the same number."""
    left_over = tmp_path / f".out.unfinished-{os.getpid()}"
    left_over.mkdir()
    (tmp_path / "other").mkdir()
    pack(find_images(images), tmp_path / "out", PackConfig(resize=16))
    assert {path.name for path in tmp_path.iterdir()} == {left_over.name, "other", "out"}
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "other").stat().st_mode  # as of every new folder


@pytest.mark.slow
def test_a_worker_that_is_killed_is_one_line(images: Path, tmp_path: Path) -> None:
    others = set(multiprocessing.active_children())

    def kill_workers(done: int) -> None:
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()

    paths = [find_images(images)[0]] * 500
    with pytest.raises(UserError, match=r"^a worker process of the loader was killed.*: use fewer --workers$"):
        pack(paths, tmp_path / "out", PackConfig(workers=1), kill_workers)  # after 64 images
    assert list(tmp_path.iterdir()) == []


def test_workers_write_the_same_shards(images: Path, packed: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        pack(find_images(images), tmp_path / str(workers), PackConfig(workers=workers, resize=50))
    without, with_workers = ((tmp_path / str(w) / "shard-000000.tar").read_bytes() for w in (0, 2))
    assert without == with_workers


# -- reading


def read(paths: Any, start: int, end: int) -> list[PairBatch]:
    dataset = PairDataset(paths, ViewsConfig(image_size=32), seed=1)
    order = BatchOrder(len(paths), 8, seed=1, start_step=start, end_step=end, shards=paths.shards)
    return list(read_batches(make_loader(dataset, order, workers=0)))


def test_a_run_that_is_resumed_in_the_middle_reads_the_same_batches(packed: Path) -> None:
    paths = find_images(packed)
    whole, rest = read(paths, 0, 10), read(paths, 3, 10)
    assert len(whole) == 10
    for a, b in zip(whole[3:], rest, strict=True):
        assert a.indices == b.indices
        assert torch.equal(a.pixels, b.pixels)
    assert sorted(i for batch in whole[:5] for i in batch.indices) == list(range(COUNT))  # an epoch
    assert [batch.indices for batch in whole[:5]] != [batch.indices for batch in whole[5:]]


def test_shards_are_read_front_to_back() -> None:
    lengths = [100, 80, 120, 90, 110]
    order = shard_order(lengths, seed=3, epoch=0, window=40, streams=2)
    assert sorted(order.tolist()) == list(range(500))
    ends = np.cumsum(lengths)
    shard = np.searchsorted(ends, order, side="right")
    for number, length in enumerate(lengths):
        place = order[shard == number] - (ends[number] - length)
        # each image is in its own window, and each of two shards has half of a window's images
        assert np.abs(place - np.arange(length)).max() < 40
        assert (np.diff(place) < 0).any()
    # two shards are open at a time
    first, last = ([np.flatnonzero(shard == i)[end] for i in range(5)] for end in (0, -1))
    open_at_once = [sum(a <= step <= b for a, b in zip(first, last, strict=True)) for step in range(500)]
    assert max(open_at_once) == 2


def test_the_order_depends_on_epoch_and_seed_only() -> None:
    orders = [shard_order([30, 40, 50], seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(o) for o in orders}) == 4
    assert np.array_equal(orders[3], shard_order([30, 40, 50], 1, 1))


def test_images_next_to_shards_and_shards_by_name(images: Path, packed: Path, tmp_path: Path) -> None:
    tar = packed / "shard-000000.tar"
    one = find_images(tar)
    assert one.shards == (len(one),)
    assert list(find_images([tar, tar])) == list(one)  # a file that is named twice counts once
    both = find_images([images, tar])
    assert len(both) == COUNT + len(one)
    assert both.shards == ()  # not all in shards: shuffled as a whole
    (tmp_path / "a.png").write_bytes((next(images.glob("*/*.png"))).read_bytes())
    (tmp_path / "leftover.tar").write_bytes(tar.read_bytes())
    assert list(find_images(tmp_path)) == [str(tmp_path / "a.png")]  # a folder of images is one
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(one) + "\n")
    assert list(find_images(listed)) == list(one)


def test_a_path_into_a_tar_and_back() -> None:
    member = Member("b/c!1+2!d.tar!9+9!.jpg", 512, 7)
    path = member_path("/data/a.tar", member)
    assert split_member_path(path) == ("/data/a.tar", member)  # a name in a tar cannot point out of it
    assert split_member_path("/data/a.tar") is None
    assert split_member_path("/data/a.jpg") is None
    assert split_member_path("/data/a.tar!0+x!b.jpg") is None


def test_an_image_of_a_truncated_or_missing_tar_is_a_bad_image(packed: Path, tmp_path: Path) -> None:
    tar = tmp_path / "a.tar"
    tar.write_bytes((packed / "shard-000000.tar").read_bytes())
    path = find_images(tar)[1]
    tar.write_bytes(b"")
    with pytest.raises(BadImageError, match=r"a.tar ends before '.*': copy it again"):
        Photo(path)
    with pytest.raises(BadImageError, match="No such file"):
        Photo(path.replace("a.tar", "b.tar"))


# -- tars of others


def tar_of(path: Path, *entries: tuple[str, bytes | None], **fields: Any) -> Path:
    """A tar with these names and contents; `fields` are set on every entry."""
    with tarfile.open(path, "w") as tar:
        for name, data in entries:
            entry = tarfile.TarInfo(name)
            entry.size = len(data or b"")
            for field, value in fields.items():
                setattr(entry, field, value)
            tar.addfile(entry, io.BytesIO(data or b""))
    return path


@pytest.mark.parametrize(
    "name", ["/etc/x.jpg", "../x.jpg", "a/../../x.jpg", "a\\..\\x.jpg", "\\\\host\\x.jpg", "C:\\x.jpg", ".."]
)
def test_names_that_lead_out_of_the_archive_are_refused(tmp_path: Path, name: str) -> None:
    tar = tar_of(tmp_path / "a.tar", ("good.jpg", b"1"), (name, b"2"))
    with pytest.raises(UserError, match="leads out of the archive"):
        find_images(tar)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    tar = tar_of(tmp_path / "a.tar", ("x.jpg", None), type=kind, linkname="/etc/passwd")
    with pytest.raises(UserError, match=r"'x.jpg' is a link, a device or a sparse file"):
        find_images(tar)


def test_control_characters_in_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="control characters"):
        find_images(tar_of(tmp_path / "a.tar", ("x\ty.jpg", b"1")))


def test_other_files_folders_and_hidden_names_are_passed_over(tmp_path: Path) -> None:
    tar = tar_of(tmp_path / "a.tar", ("b/a.jpg", b"1"), ("b/a.json", b"{}"), ("b/._a.jpg", b"3"), ("c.PNG", b"4"))
    assert [path.rpartition("!")[2] for path in find_images(tar)] == ["b/a.jpg", "c.PNG"]
    folder = tar_of(tmp_path / "folder.tar", ("x.jpg", None), type=tarfile.DIRTYPE)
    with pytest.raises(UserError, match="no images found"):
        find_images(folder)


def test_a_file_that_is_not_a_tar_compressed_or_cut_off_is_reported(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_text("no archive, " * 100)
    with pytest.raises(UserError, match=r"text.tar: is not a readable tar file"):
        find_images(tmp_path / "text.tar")
    with tarfile.open(tmp_path / "zipped.tar", "w:gz") as tar:
        tar.add(packed / "shard-000000.tar", "a.jpg")
    with pytest.raises(UserError, match=r"zipped.tar: is not a readable tar file.*decompress it"):
        find_images(tmp_path / "zipped.tar")
    whole = (packed / "shard-000000.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cut.tar: "):
        find_images(tmp_path / "cut.tar")


# -- the command


def test_the_command_packs_and_prints_the_result(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "out"
    assert main(["pack", str(images), str(out), "--workers", "0", "--seed", "4"]) == 0
    assert f"40 images in 1 shard: {out}" in capsys.readouterr().out
    assert len(find_images(out)) == COUNT
    assert main(["pack", str(images), str(out), "--workers", "0"]) == 2
    assert "is not empty: name a folder that does not exist" in capsys.readouterr().err
    assert len(find_images(out)) == COUNT


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing", "out"], "missing: there is no such folder or file"),
        (["IMAGES"], "two folders are needed: resim pack DIR OUT"),
        (["IMAGES", "out", "--resize", "-1"], "resize -1: must be at least 0"),
        (["IMAGES", "out", "--quality", "0"], "quality 0: must be at least 1"),
        (["IMAGES", "out", "--shard-mb", "0"], "shard-mb 0: must be at least 1"),
        (["IMAGES", "IMAGES/0/plain-3.jpg/out"], "cannot be written"),
    ],
)
def test_an_error_of_pack_is_one_line(
    images: Path, words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.replace("IMAGES", str(images)) for word in words]
    words = [str(tmp_path / word) if word in ("missing", "out") else word for word in words]
    assert main(["pack", *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_pretraining_reads_shards(images: Path, packed: Path, tmp_path: Path) -> None:
    model = ["--recipe", "quick", "--levels", "P4:window=32,step=16", "--fpn-width", "8", "--queue-size", "16"]
    small = ["--group-size", "4", "--batch-size", "8", "--image-size", "64", "--epochs", "1", "--stop-after", "2"]
    settings = [*model, *small, "--device", "cpu", "--precision", "float32", "--workers", "0"]
    command = [sys.executable, "-m", "resim", "pretrain", str(packed), "--out", str(tmp_path / "run"), *settings]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "40 images" in done.stdout
    assert (tmp_path / "run" / "pictures" / "epoch_0001.png").exists()
