"""A run's config.json and its lists, whatever they contain: read, or refused in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from resim.errors import UserError
from resim.runs.folder import starting_point, stored_setting
from resim.runs.lines import cut_lines, parse_line, read_records
from resim.runs.nonfinite import _passed_over

DEEP = "[" * 200_000 + "]" * 200_000


def config(folder: Path, content: Any) -> Path:
    (folder / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_the_start_of_a_run_is_that_of_its_config(tmp_path: Path) -> None:
    out = config(tmp_path, {"run": {"start_from": "a.pt", "start_epoch": 3, "seed": None}})
    assert starting_point(out, None, 0) == starting_point(out, "./a.pt", 3) == ("a.pt", 3)
    assert (stored_setting(out, "start_epoch"), stored_setting(out, "seed"), stored_setting(out, "other")) == (
        3, None, None,
    )  # fmt: skip
    for text in ("{}", "[]", "3", "null", '{"run": []}'):
        assert starting_point(config(tmp_path, text), None, 0) == (None, 0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (DEEP, "nested too deeply"),
        ('{"run": ', "Expecting value"),
        ("\x00", "Expecting value"),
        ("", "Expecting value"),
    ],
    ids=["deep", "cut", "zero", "empty"],
)
def test_a_damaged_config_is_one_line(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(UserError, match=rf"config\.json: is damaged \(.*{reason}.*\): restore it") as caught:
        stored_setting(config(tmp_path, text), "seed")
    assert "\n" not in str(caught.value)


def test_a_config_that_is_a_pipe_or_missing_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json: cannot be read \(No such file or directory\)"):
        starting_point(tmp_path, None, 0)
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(UserError, match=r"config\.json: cannot be read \(a named pipe, not a file\)"):
        starting_point(tmp_path, None, 0)


@pytest.mark.parametrize("run", [{"start_from": [1]}, {"start_from": 3}, {"start_epoch": "a"}, {"start_epoch": None}])
def test_a_config_with_no_start_of_a_run_is_one_line(tmp_path: Path, run: dict[str, Any]) -> None:
    message = r"config\.json: start_from must be a path or null and start_epoch a whole number, not .*: restore"
    with pytest.raises(UserError, match=message):
        starting_point(config(tmp_path, {"run": run}), "b.pt", 0)


def test_a_line_that_is_nested_deeply_is_damaged(tmp_path: Path) -> None:
    deep = b'{"step": 1, "a": ' + DEEP.encode() + b"}\n"
    assert parse_line(deep) is None
    assert parse_line(b'{"step": 1}\n') == {"step": 1}
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 0}\n' + deep + b'{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is damaged"):
        read_records(tmp_path / "metrics.jsonl")
    cut = cut_lines(tmp_path / "metrics.jsonl", 3)
    assert cut is not None
    assert cut.damaged == (2,)
    assert [record["step"] for record in read_records(tmp_path / "metrics.jsonl")] == [0, 2]


def test_metrics_that_are_a_pipe_are_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be read \(a named pipe, not a file\)"):
        read_records(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize("text", [DEEP, "[]", '{"step": 1e999, "passed_over": true}', '{"step": 1}', "\xff"])
def test_a_record_of_a_batch_that_is_damaged_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "nonfinite").mkdir()
    (tmp_path / "nonfinite" / "step_000001.json").write_text('{"step": 1, "passed_over": true}')
    assert _passed_over(tmp_path) == [1]
    (tmp_path / "nonfinite" / "step_000002.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"step_000002\.json: cannot be read \(.*\): restore it, or remove it"):
        _passed_over(tmp_path)
