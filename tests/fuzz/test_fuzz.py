"""The small form of the fuzzing: some inputs of every target, and the inputs that once failed."""

from __future__ import annotations

import contextlib
import io
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import torch

from resim.errors import UserError
from tests.fuzz import checkpoints, engines
from tests.fuzz.mutate import mutate_bytes, mutate_tree
from tests.fuzz.run import MEMORY_DISK, Finding, _quiet, try_input
from tests.fuzz.targets import TARGETS, Target

ROOT = Path(__file__).resolve().parents[2]
FEW = {"detector": 8, "start": 8, "import": 8, "arguments": 8, "checkpoint": 20, "detectron2": 20, "hub": 40,
       "recipe": 40}  # fmt: skip


@pytest.fixture
def inside() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=MEMORY_DISK) as folder:
        yield Path(folder) / "target"


def test_inputs_are_a_function_of_seed_and_number() -> None:
    for target in TARGETS.values():
        if target.encode is checkpoints.encode:  # files of torch.save before 1.6 contain addresses in memory
            continue
        assert [target.make(3, number) for number in range(20)] == [target.make(3, number) for number in range(20)]
    pickles = TARGETS["pickle"]
    assert pickles.make(0, 5000) != pickles.make(1, 5000)
    tree = {"a": [1, {"b": "c"}]}
    changed = [mutate_tree(tree, Random(seed)) for seed in range(50)]
    assert tree == {"a": [1, {"b": "c"}]}
    assert any(one != tree for one in changed)
    assert any(mutate_bytes(b"abc" * 9, Random(seed)) != b"abc" * 9 for seed in range(5))


def test_one_part_of_a_tree_is_replaced() -> None:
    tree = {"a": [1, {"b": "c"}], "d": 2}
    placed = [engines.placed(tree, Random(seed), "new") for seed in range(50)]
    assert tree == {"a": [1, {"b": "c"}], "d": 2}
    for expected in ("new", tree | {"d": "new"}, tree | {"a": [1, {"b": "new"}]}, tree | {"a": ["new", {"b": "c"}]}):
        assert expected in placed


@pytest.mark.slow
@pytest.mark.parametrize("name", list(TARGETS))
def test_some_inputs(name: str, inside: Path) -> None:
    target = TARGETS[name]
    with target.surroundings():
        folder = target.fresh(inside)
        for number in range(FEW.get(name, 150)):
            data = target.make(2026, number)
            finding = try_input(target, data, folder)
            assert finding is None, f"input {number}: {finding}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["checkpoint", "detector", "start", "import"])
def test_whole_files_of_weights_are_read(name: str, inside: Path) -> None:
    """Those of tiny networks; a torso is refused at its first missing entry."""
    target, read = TARGETS[name], 0
    with target.surroundings():
        folder = target.fresh(inside)
        whole = [tree for tree in target.trees() if len(str(tree)) > 5000]
        for tree in whole:
            buffer = io.BytesIO()
            torch.save(checkpoints.fill(tree, arrays=False), buffer)
            target.run(buffer.getvalue(), folder)
            read += 1
    assert read >= 2


@pytest.mark.parametrize("name", ["coco", "voc", "yolo", "cityscapes", "tar", "tar-index", "explorer", "run"])
def test_whole_inputs_are_read(name: str, inside: Path) -> None:
    """Otherwise a target would fuzz its first error message alone."""
    target = TARGETS[name]
    folder = target.fresh(inside)
    read = 0
    for data in (*target.seeds(), *(target.encode(tree, Random(0)) for tree in target.trees())):
        with contextlib.suppress(UserError), _quiet():
            target.run(data, folder)
            read += 1
    assert read >= 1


# -- the harness itself: each kind of failure is a finding


def finding_of(run: object, folder: Path) -> Finding | None:
    target = Target(name="pretended", run=run, seeds=lambda: (b"a",))  # type: ignore[arg-type]
    return try_input(target, b"a", target.fresh(folder))


def test_a_clear_error_is_no_finding_and_another_one_is(inside: Path) -> None:
    def refuse(data: bytes, folder: Path) -> None:
        raise UserError("a.json: is empty")

    def advise(data: bytes, folder: Path) -> None:
        raise UserError("set weights_only=False")

    def fail(data: bytes, folder: Path) -> None:
        raise KeyError("a")

    assert finding_of(refuse, inside) is None
    assert finding_of(lambda data, folder: (folder / "b").write_bytes(data), inside) is None
    advised, failed = finding_of(advise, inside), finding_of(fail, inside)
    assert advised is not None
    assert failed is not None
    assert failed.kind.startswith("KeyError at")


HARNESS = """
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
sys.path.insert(0, "tests")
from tests.fuzz import run
from tests.fuzz.targets import Target
run.SECONDS = 1.0
run.WATCH.install()
run.limit_memory()

def write(data, folder): (folder.parent / "b").write_bytes(data)
def read(data, folder): (folder.parent / "outside.png").read_bytes()
def start(data, folder): __import__("os").system("true")
def remove(data, folder): (folder.parent / "outside.png").unlink()
def hang(data, folder):
    while True: pass
def grow(data, folder): bytearray(b"a") * (8 << 30)

for act in (write, read, start, remove, hang, grow):
    target = Target(name="pretended", run=act, seeds=lambda: (b"a",))
    finding = run.try_input(target, b"a", target.fresh(Path(sys.argv[1])))
    print(act.__name__, finding and finding.kind.split()[0])
"""


@pytest.mark.slow
def test_files_elsewhere_hangs_and_memory_are_findings(inside: Path) -> None:
    """In a process of its own: an audit hook and a limit stay for ever."""
    done = subprocess.run(
        [sys.executable, "-c", HARNESS, str(inside)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    expected = ["write Escape", "read Escape", "start Escape", "remove Escape", "hang Hang", "grow MemoryError"]
    assert done.stdout.splitlines() == expected, done.stderr


@pytest.mark.slow
def test_a_process_that_dies_leaves_the_input_and_a_finding_can_be_replayed(tmp_path: Path) -> None:
    bad = tmp_path / "a.input"
    bad.write_bytes(pickle.dumps({"a": 1}))
    command = [sys.executable, "-m", "tests.fuzz", "pickle"]
    done = subprocess.run([*command, "--replay", str(bad)], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "read, or refused with a clear error" in done.stdout
    out = ["--inputs", "60", "--minutes", "1", "--out", str(tmp_path / "found")]
    done = subprocess.run([*command, *out], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pickle              60 inputs" in done.stdout
    assert list((tmp_path / "found").iterdir()) == []


# -- inputs that once failed

ONCE: list[tuple[str, bytes]] = [
    ("cityscapes", b'{"imgWidth": 100, "imgHeight": 80, "objects": [{"label": true, "polygon": [[1,1],[9,1],[9,9]]}]}'),
    ("cityscapes", b'{"imgWidth": 100, "imgHeight": 80, "objects": [{"label": [1], "polygon": [[1,1],[9,1],[9,9]]}]}'),
    ("cityscapes", b'{"imgWidth": 9223372036854775808, "imgHeight": 80, "objects": []}'),
    ("cityscapes", b'{"imgWidth": 4294967295, "imgHeight": "{}", "objects": []}'),
    ("cityscapes", b'{"imgWidth": 200000, "imgHeight": 200000, "objects": []}'),
    ("yolo", b"names: [cat]\ntrain: ../../o" + b"9" * 5000),
    ("yolo", b"[" * 50_000),
    ("yolo", b"a: &a [x, x]\n" + b"".join(b"%c: &%c [*%c, *%c]\n" % (n + 1, n + 1, n, n) for n in range(97, 121))
     + b"names: *y\ntrain: images\n"),
    ("yolo", b"names: {0: [a]}\ntrain: images\n"),
    ("hub", b'{"weight_map": {"a": "\\ud800"}}'),
    ("hub", b'{"weight_map": {"a": "\\u0000"}}'),
    ("explorer", b"host: 127.0.0.1:07860\n\n"),
    ("pickle", b"\x80\x04)" + b"\x85" * 1_000_000 + b"."),
    ("coco", b'{"categories": ' + b"[" * 100_000),
    ("coco", b'{"images": [{"id": 1, "file_name": "1.png", "width": 100, "height": 80}], "categories": [{"id": 7, '
     b'"name": "a"}], "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 2, 9, 9], "iscrowd": 1'
     + b"0" * 310 + b"}]}"),
    ("coco", b'{"images": [{"id": 1, "file_name": "\\ud800", "width": 100, "height": 80}], "categories": [{"id": 7, '
     b'"name": "a"}], "annotations": []}'),
    ("voc", b"<annotation><filename>" + b"a" * 5000 + b".jpg</filename><size><width>100</width><height>80</height>"
     b"</size></annotation>"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(ONCE)))
def test_inputs_that_once_failed(number: int, inside: Path) -> None:
    name, data = ONCE[number]
    target = TARGETS[name]
    assert try_input(target, data, target.fresh(inside)) is None


def test_a_long_name_is_shortened_in_the_message(capsys: pytest.CaptureFixture[str]) -> None:
    from resim.cli.main import main

    assert main(["pretrain", "DIR", "--recipe", "y" * 100_000]) == 2
    error = capsys.readouterr().err
    assert len(error) < 2100
    assert error.count("\n") == 1
