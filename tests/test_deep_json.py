"""JSON that others wrote: what is no JSON, or is nested too deeply, is a ValueError."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from resim.cli.main import main
from resim.errors import UserError
from resim.exchange.files.contents import read_contents
from resim.exchange.weights import read_weights, weights_in
from resim.reading import parse_json

DEEP = "[" * 200_000 + "]" * 200_000
DEEP_OBJECT = '{"a":' * 200_000 + "1" + "}" * 200_000


@pytest.mark.parametrize("text", [DEEP, DEEP_OBJECT, DEEP.encode(), '{"recipe": ' + DEEP + "}", "[" * 200_000])
def test_200_000_levels_are_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(text)


def test_other_json_is_read_as_by_json() -> None:
    assert parse_json(b'{"a": [1, null, "\\u00e9"]}') == {"a": [1, None, "é"]}
    with pytest.raises(json.JSONDecodeError):
        parse_json("{")
    with pytest.raises(ValueError):
        parse_json(b"\xff\xff\xff")


COMMANDS: dict[str, Callable[[str], list[str]]] = {
    "pretrain --recipe": lambda file: ["pretrain", "--recipe", file],
    "detect train --recipe": lambda file: ["detect", "train", "--recipe", file],
    "import a shard's index": lambda file: ["import", str(Path(file).rename(f"{file}.index.json"))],
    "detect train COCO": lambda file: ["detect", "train", file],
}


@pytest.mark.parametrize("command", list(COMMANDS))
@pytest.mark.parametrize("text", [DEEP, '{"recipe": ' + DEEP_OBJECT + "}"], ids=["lists", "objects"])
def test_a_command_refuses_it_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, text: str
) -> None:
    (tmp_path / "deep.json").write_text(text)
    assert main(COMMANDS[command](str(tmp_path / "deep.json"))) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "deep.json" in line
    assert "nested too deeply" in line


def test_config_json_of_a_hub_folder_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    """It is evidence for the input of the network; weights without it are read too."""
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        save_file({"conv1.weight": torch.zeros(64, 3, 7, 7)}, folder / "model.safetensors")
    (tmp_path / "a" / "config.json").write_text(DEEP_OBJECT)
    messages = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        with pytest.raises(UserError) as refused:
            read_weights(folder)
        messages.append(str(refused.value).replace(str(folder), ""))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("entry", ["recipe", "step", "data"])
def test_metadata_of_a_safetensors_file(tmp_path: Path, entry: str) -> None:
    save_file({"w": torch.zeros(2)}, tmp_path / "w.safetensors", metadata={"resim": "1", entry: DEEP})
    with pytest.raises(UserError, match="contains no recipe of this version"):
        weights_in(read_contents(tmp_path / "w.safetensors"))


def test_a_header_of_a_safetensors_file(tmp_path: Path) -> None:
    header = ('{"__metadata__":{"a":' + DEEP + "}}").encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + np.zeros(2).tobytes())
    with pytest.raises(UserError, match="damaged, or no safetensors file"):
        read_contents(tmp_path / "w.safetensors")
