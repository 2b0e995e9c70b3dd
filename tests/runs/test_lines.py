"""Files of one record a line: what is read of damaged ones, and what is cut out and kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from resim.distributed.processes import Processes
from resim.draw.curves import draw_curves
from resim.errors import UserError
from resim.report.run_files import read_runs
from resim.runs.lines import append, cut_lines, parse_line, read_records
from resim.runs.log import Log, Reading, read_metrics
from resim.runs.progress import Progress

DAMAGED = {
    "NULs": bytes(40) + b"\n",
    "bad UTF-8": b'{"step": 3, "name": "\xff\xfe"}\n',
    "half a line": b'{"step": 3, "loss/to\n',
    "no step": b'{"loss/total": 1.0}\n',
    "a step that is none": b'{"step": "3"}\n',
    "a flag for a step": b'{"step": true}\n',
    "a step of hundreds of digits": b'{"step": 1' + b"0" * 400 + b"}\n",
    "a negative step": b'{"step": -1}\n',
    "a list": b"[1, 2]\n",
    "nested deeply": b"[" * 100_000 + b"\n",
    "an empty line": b"\n",
    "two lines in one": b'{"step": 3}{"step": 4}\n',
}


def line(step: int, loss: float = 1.0) -> bytes:
    return json.dumps({"step": step, "epoch": 0, "loss/total": loss, "lr": 0.1}).encode() + b"\n"


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_line_is_no_record(kind: str) -> None:
    assert parse_line(DAMAGED[kind]) is None
    assert parse_line(line(3)) == {"step": 3, "epoch": 0, "loss/total": 1.0, "lr": 0.1}
    assert parse_line(line(3)[:-1]) is None  # cut off: the next digit may be missing


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_lines_and_later_steps_are_moved(kind: str, tmp_path: Path) -> None:
    path, copy = tmp_path / "metrics.jsonl", tmp_path / "metrics.jsonl.cut"
    bad = DAMAGED[kind]
    copy.write_bytes(line(9))  # of an earlier --resume
    path.write_bytes(line(0) + bad + line(1) + line(2) + line(3) + b'{"step": 4, "lo')
    cut = cut_lines(path, 2)
    assert cut is not None
    assert (cut.num_later, cut.damaged, cut.copy) == (2, (2, 6), copy)
    assert path.read_bytes() == line(0) + line(1)
    expected = line(9) + bad + line(2) + line(3) + b'{"step": 4, "lo\n'
    assert copy.read_bytes() == expected
    assert cut_lines(path, 2) is None
    assert copy.read_bytes() == expected


def test_nothing_is_written_where_nothing_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert cut_lines(path, 0) is None
    path.write_bytes(line(0) + line(1))
    before = path.stat()
    assert cut_lines(path, 2) is None
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("kind", DAMAGED)
def test_readers_name_the_damaged_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(0) + DAMAGED[kind] + line(1) + b'{"step": 2')
    for read in (read_records, read_metrics):
        with pytest.raises(UserError, match=r"metrics.jsonl: line 2 is damaged, no record of a step: --resume"):
            read(path)
    path.write_bytes(line(0) + line(1) + b'{"step": 2')
    assert [record["step"] for record in read_metrics(path)] == [0, 1]


@pytest.mark.parametrize("kind", DAMAGED)
@pytest.mark.parametrize("name", ["metrics.jsonl", "probes.jsonl", "scores.jsonl", "resumed.jsonl"])
def test_reports_and_curves_end_without_a_traceback(kind: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"kind": "detect"}))
    (tmp_path / "metrics.jsonl").write_bytes(line(0) + line(1))
    (tmp_path / name).write_bytes(line(0) + DAMAGED[kind] + line(1))
    for act in (
        lambda: read_runs([tmp_path]),
        lambda: draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png"),
    ):
        try:
            act()
        except UserError as error:
            assert f"{name}: line 2" in str(error)  # noqa: PT017


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    full = tmp_path / "metrics.jsonl"
    full.symlink_to("/dev/full")  # every write to it fails as on a full disk
    with pytest.raises(UserError, match=r"metrics.jsonl: cannot be written \(No space left on device\)"):
        append(full, b"a line\n")


def new_log(folder: Path) -> Log:
    processes = Processes(rank=0, count=1, device=torch.device("cpu"), cores=1)
    progress = Progress(steps=9, epoch_steps=3, show=True)
    return Log(folder, processes, progress, batch_size=2, epoch_steps=3, end=9, workers=0)


def test_a_log_repairs_its_files_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(line(0) + bytes(8) + b"\n" + line(1) + line(2) + line(3))
    (tmp_path / "probes.jsonl").write_bytes(line(0) + line(2) + b'{"step": 3, "kn')
    (tmp_path / "scores.jsonl").write_bytes(b"\xff\n" + line(2) + line(3))
    log = new_log(tmp_path)
    log.start(2)
    names = ("metrics.jsonl", "probes.jsonl", "scores.jsonl")
    steps = [[record["step"] for record in read_records(tmp_path / name)] for name in names]
    assert steps == [[0, 1], [0, 2], [2]]
    assert (tmp_path / "metrics.jsonl.cut").read_bytes() == bytes(8) + b"\n" + line(2) + line(3)
    output = capsys.readouterr().out
    cut = f"moved to {tmp_path / 'metrics.jsonl.cut'}"
    assert f"metrics.jsonl: 2 lines after step 2 and 1 damaged or incomplete line (number 2) {cut}" in output
    assert f"probes.jsonl: 1 damaged or incomplete line (number 3) moved to {tmp_path / 'probes.jsonl.cut'}" in output
    assert "scores.jsonl: 1 line after step 2 and 1 damaged or incomplete line (number 1)" in output
    log.record_reading(2, lambda: pytest.fail("it has been read before"))
    log.record_reading(3, lambda: Reading(values={"knn/C5": 0.5}))
    assert read_records(tmp_path / "probes.jsonl")[-1] == {"step": 3, "epoch": 1, "knn/C5": 0.5}
    log.close()


def test_a_log_names_the_full_file(tmp_path: Path) -> None:
    log = new_log(tmp_path)
    log.start(0)
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    log.add(0, 0.1, {"total": torch.tensor(1.0)})
    with pytest.raises(UserError, match=r"metrics.jsonl: cannot be written \(No space left on device\)"):
        log.flush()
    log.close()
