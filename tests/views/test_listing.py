"""A listing is what a plain form of it lists, whatever the tree, in order of the whole paths."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import random
import re
import subprocess
import tarfile
import tracemalloc
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from resim.errors import UserError
from resim.views import listing_progress, repeats, walk
from resim.views.folder import PathList, find_images, is_image
from resim.views.repeats import find_repeats
from resim.views.shards import is_shard, list_shard, member_path
from resim.views.walk import PassedOver, ending_of, walk_files

Listed = tuple[list[str], tuple[int, ...], PassedOver]


# -- the plain form


def plain_walk(folder: str, passed: PassedOver, above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, bool]]:
    """The files below a folder, in no order."""
    status = Path(folder).stat()
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        passed.loops += 1
        return
    for name in os.listdir(folder):  # noqa: PTH208 - strings: a name may end in a dot
        path = os.path.join(folder, name)  # noqa: PTH118
        is_wanted = is_image(name) or is_shard(name)
        if name.startswith("."):
            passed.hidden += is_wanted or Path(path).is_dir()
        elif os.path.isdir(path):  # noqa: PTH112
            yield from plain_walk(path, passed, above | {identity})
        elif not os.path.exists(path):  # noqa: PTH110
            passed.dead_links += 1
        elif not os.path.isfile(path):  # noqa: PTH113
            passed.special += 1
        elif is_wanted:
            yield path, os.path.islink(path)  # noqa: PTH114
        else:
            passed.endings[ending_of(name)] += 1


def plain_listing(sources: Sequence[str]) -> Listed:
    """Paths, images of each shard and what is passed over, with every path in a dictionary."""
    images: dict[str, str] = {}
    shards: dict[str, int] = {}
    passed = PassedOver()

    def add(path: str) -> bool:
        file = os.path.realpath(path)
        is_repeat = file in images
        images.setdefault(file, path)
        return is_repeat

    def add_shard(tar: str) -> None:
        file = os.path.realpath(tar)
        if file not in shards:
            members = [member_path(tar, member) for member in list_shard(tar, is_image)]
            shards[file] = len(members)
            images.update((member, member) for member in members)

    for source in sources:
        if os.path.isdir(source):  # noqa: PTH112
            files = sorted(plain_walk(source, passed, frozenset()))
            image_files = [path for path, _ in files if not is_shard(path)]
            for path in image_files:
                passed.repeats += add(path)
            for tar, _ in files:
                if image_files:
                    passed.tars += is_shard(tar)
                else:
                    add_shard(tar)
        elif source.endswith(".txt"):
            for line in re.split(r"\r\n|\r|\n", Path(source).read_bytes().decode("utf-8", "surrogateescape")):
                if line.strip() and not line.startswith("#"):
                    add(os.path.join(os.path.dirname(source), line))  # noqa: PTH118, PTH120
        elif is_shard(source):
            add_shard(source)
        else:
            add(source)
    in_shards = sum(shards.values()) == len(images)
    return list(images.values()), tuple(shards.values()) if in_shards else (), passed


def listing(sources: Sequence[str]) -> Listed:
    paths = find_images(sources)
    assert [paths[index] for index in range(len(paths))] == list(paths)
    return list(paths), paths.shards, paths.passed


# -- trees

# letters on both sides of the "/" of a path, and of others that sort differently as bytes
NAMES = ("a", "a b", "a!", "a-b", "a.b", "a0", "ab", "A", "é", "z\n", "\U0001f600", "￮", "\udcff", "a\r", "á")


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def pack(path: Path, names: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))


def grow(rng: random.Random, folder: Path, depth: int, *, only_tars: bool) -> None:
    """Files, folders, links, pipes and tars below a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(rng.randrange(1, 7)):
        name = rng.choice(NAMES)
        kind = rng.choice(("image", "image", "image", "folder", "folder", "link", "link", "other", "hidden", "tar"))
        if kind == "folder" and depth:
            below = folder / rng.choice((name, f"{name}.jpg"))
            if not os.path.lexists(below):
                grow(rng, below, depth - 1, only_tars=only_tars)
            continue
        ending = {"image": ".jpg", "other": ".gif", "tar": ".tar", "link": rng.choice((".png", ""))}.get(kind, "")
        path = folder / f"{'.' * (kind == 'hidden')}{name}{ending}"
        if os.path.lexists(path):
            continue
        if kind == "tar":
            pack(path, [f"{number}/{name}.jpg" for name in "ba"])
        elif kind == "link":
            others = sorted(folder.parent.rglob("*"))
            targets = [*others, folder, folder.parent, folder / "nothing.jpg", path]
            path.symlink_to(rng.choice([t for t in targets if not (only_tars and t.suffix == ".jpg" and t.is_file())]))
        elif rng.random() < 0.05:
            os.mkfifo(path)
        elif not (only_tars and kind == "image"):
            path.touch()


@pytest.mark.parametrize("seed", range(60))
def test_random_trees_are_listed_as_by_the_plain_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(walk, "_MANY", rng.choice((1, 2, 100)))
    for name in ("one", "two"):
        grow(rng, tmp_path / name, 3, only_tars=rng.random() < 0.3)
    touch(tmp_path / "one" / "always.jpg" if rng.random() < 0.7 else tmp_path / "always.jpg")
    images = [path for path in sorted(tmp_path.rglob("*.jpg")) if path.is_file() and not set("\r\n") & set(str(path))]
    lines = [os.fsencode(os.path.relpath(rng.choice(images), tmp_path)) for _ in range(6)]
    (tmp_path / "list.txt").write_bytes(rng.choice((b"\n", b"\r\n", b"\r")).join([b"# chosen", b"", *lines]))
    tars = [str(path) for path in sorted(tmp_path.rglob("*.tar")) if path.is_file()]
    kinds = [f"{tmp_path}/one", f"{tmp_path}/one/", f"{tmp_path}/two", f"{tmp_path}/two/../one", str(tmp_path)]
    kinds += [f"{tmp_path}/list.txt", *tars[:2], str(images[0])]
    sources = [rng.choice(kinds) for _ in range(rng.choice((1, 1, 2, 3, 5)))] + [str(images[-1])]
    assert listing(sources) == plain_listing(sources)


def test_folders_are_visited_in_the_order_of_whole_paths(tmp_path: Path) -> None:
    for name in ("a/b.jpg", "a-b.jpg", "a.jpg", "a0.jpg", "a/b-/c.jpg", "a/b/c.jpg", "a!/c.jpg", "a.jpg.d/c.jpg"):
        touch(tmp_path / name)
    paths = [os.path.relpath(path, tmp_path) for path, _ in walk_files(str(tmp_path), is_image, PassedOver())]
    expected = ["a!/c.jpg", "a-b.jpg", "a.jpg", "a.jpg.d/c.jpg", "a/b-/c.jpg", "a/b.jpg", "a/b/c.jpg", "a0.jpg"]
    assert paths == expected == sorted(expected)


def test_folders_of_any_depth_are_entered(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1500):  # deeper than Python's limit of recursion
        os.mkdir("d", dir_fd=here)
        deeper = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(os.open("a.jpg", os.O_CREAT, dir_fd=here))
    os.close(here)
    try:
        paths = list(find_images(tmp_path))
    finally:
        subprocess.run(["rm", "-r", tmp_path / "d"], check=True)  # Python's functions have the limit
    assert paths == [f"{tmp_path}{'/d' * 1500}/a.jpg"]


@pytest.mark.parametrize("many", [1, 3, 4, 8, 100])
def test_many_names_of_one_folder_are_sorted_in_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many: int
) -> None:
    monkeypatch.setattr(walk, "_MANY", many)
    names = [f"{name}.jpg" for name in NAMES]
    for name in names[:8]:
        touch(tmp_path / name)
    for name in names[8:]:
        (tmp_path / name).symlink_to(tmp_path / names[0])
    for name in ("a", "ab"):
        touch(tmp_path / name / "x.jpg")
    walked = list(walk_files(str(tmp_path), is_image, PassedOver()))
    expected = [(f"{tmp_path}/{name}", name in names[8:]) for name in (*names, "a/x.jpg", "ab/x.jpg")]
    assert walked == sorted(expected)


# -- repeats


def test_files_are_the_same_by_their_paths_not_by_the_hashes_of_these(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        touch(tmp_path / name)
    (tmp_path / "d.jpg").symlink_to("b.jpg")
    paths = [str(tmp_path / f"{name}.jpg") for name in "abcbda"]
    assert find_repeats(paths, array("q", [7] * 6)).tolist() == [3, 4, 5]
    assert find_repeats(paths, array("q", range(6))).tolist() == []
    assert find_repeats(paths, array("q", [1, 2, 3, 2, 2, 1])).tolist() == [3, 4, 5]


def test_only_repeats_in_folders_are_counted(tmp_path: Path) -> None:
    for name in ("one/a.jpg", "one/b.jpg", "two/c.jpg"):
        touch(tmp_path / name)
    (tmp_path / "two" / "b.jpg").symlink_to(tmp_path / "one" / "b.jpg")
    (tmp_path / "list.txt").write_text("one/a.jpg\none/a.jpg\n")
    sources = [tmp_path / "list.txt", tmp_path / "one", tmp_path / "two", tmp_path / "one" / "b.jpg"]
    paths = find_images(sources)
    assert [os.path.relpath(path, tmp_path) for path in paths] == ["one/a.jpg", "one/b.jpg", "two/c.jpg"]
    assert paths.passed == PassedOver(repeats=2)  # a.jpg in the folder one, b.jpg in the folder two


def test_a_member_that_an_index_lists_twice_is_one_image(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", ["x.jpg", "y.jpg"])
    members = list_shard(str(tmp_path / "a.tar"), is_image)
    entry = {"bytes": (tmp_path / "a.tar").stat().st_size, "members": [*members, members[0]]}
    (tmp_path / "shards.json").write_text(json.dumps({"shards": {"a.tar": entry}}))
    assert listing([str(tmp_path)]) == plain_listing([str(tmp_path)])
    assert len(find_images(tmp_path)) == 2


def test_few_resolved_folders_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "_FOLDERS", 2)
    resolved = repeats.ResolvedPaths()
    (tmp_path / "link").symlink_to(tmp_path)
    for folder, name in itertools.product(("x", "y", "z", "x"), ("1.jpg", "2.jpg")):
        assert resolved.path_of(f"{tmp_path}/link/{folder}/{name}", False) == f"{tmp_path.resolve()}/{folder}/{name}"


# -- memory, progress, interruption


def test_a_list_of_paths_takes_few_bytes_and_can_be_pickled() -> None:
    paths = PathList(f"/data/{number // 1000:06d}/{number:012d}.jpg" for number in range(5000))
    assert len(pickle.dumps(paths)) < 16 * 5000  # of 29 letters each
    again = pickle.loads(pickle.dumps(paths))
    assert (again[0], again[4999]) == ("/data/000000/000000000000.jpg", "/data/000004/000000004999.jpg")
    assert again.fingerprint() == paths.fingerprint()


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 64, 65])
def test_paths_that_have_much_little_or_nothing_in_common_are_returned(count: int) -> None:
    rng = random.Random(count)
    for start in ("", "/data/", "/é\udcff/"):
        paths = [start + "".join(rng.choices(("", "x", "/", "ü", "\udcc3"), k=rng.randrange(6))) for _ in range(count)]
        listed = PathList(paths)
        assert [listed[index] for index in range(len(listed))] == list(listed) == paths


def test_a_list_of_many_lines_is_not_read_whole(tmp_path: Path) -> None:
    for number in range(10):
        touch(tmp_path / f"{number}.jpg")
    lines = 8000
    text = "".join(f"./././././././././././././././././././{number % 10}.jpg\n" for number in range(lines))
    (tmp_path / "list.txt").write_text(text)
    find_images(tmp_path / "list.txt")
    tracemalloc.start()
    try:
        assert len(find_images(tmp_path / "list.txt")) == 10
        assert tracemalloc.get_traced_memory()[1] < 60 * lines  # the lines as strings take 100 each
    finally:
        tracemalloc.stop()


def test_a_line_that_no_path_can_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"# of a camera\n" + b"x" * 3 * 2**20)
    with pytest.raises(UserError, match=r"list\.txt, line 2: is longer than a path can be"):
        find_images(tmp_path / "list.txt")


def test_long_listings_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = itertools.chain([0.0, 0.5, 1.0, 1.5, 2.5], itertools.repeat(2.6))
    monkeypatch.setattr(listing_progress.time, "monotonic", lambda: next(clock))
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        touch(tmp_path / name)
    find_images([tmp_path])  # three names in the folder, then three images
    assert capsys.readouterr().err.splitlines() == [
        "listing images: 0 after 1 s",
        "listing images: 1 after 2 s",
    ]


def test_pauses_between_reports_double_up_to_a_minute_and_only_the_first_process_reports(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = 0.0
    monkeypatch.setattr(listing_progress.time, "monotonic", lambda: seconds)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        seconds = 0.0
        progress = listing_progress.ListingProgress()
        for _ in range(300):
            seconds += 1.0
            progress.count()
    printed = [int(line.split()[-2]) for line in capsys.readouterr().err.splitlines()]
    assert printed == [1, 2, 4, 8, 16, 32, 64, 124, 184, 244]
