"""Words that are no options, or lack something: one line that names the option."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from resim.cli.options import Command, read_options
from resim.errors import UserError
from resim.regions.level import Level

END = " (resim verb --help explains the options)"


@dataclass(frozen=True, kw_only=True)
class Group:
    """A group of options."""

    batch_size: int = 4
    """Images."""
    flip: Literal["shared", "none"] = "none"
    """How to flip."""
    sizes: tuple[int, ...] = (1, 2)
    """Sizes."""
    levels: tuple[Level, ...] = ()
    """Levels."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch-size {self.batch_size}: must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a verb."""

    data: Annotated[Path, tyro.conf.Positional]
    """Data."""
    model: Path
    """A model."""
    draw: bool = True
    """Draw."""
    group: Group
    command: Command = ()


DEFAULT = Options(data=tyro.MISSING, model=tyro.MISSING, group=Group(), command=("verb",))


def read(*words: str) -> Options:
    return read_options(Options, words, "verb", "A verb.", DEFAULT)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Missing from resim verb: --model"),
        (["--model", "m"], "Missing from resim verb: DATA"),
        (["d", "--model"], "--model: expected a value"),
        (["d", "--model", "--no-draw"], "--model: expected a value"),
        (["d", "--model", "m", "--batch-size"], "--batch-size: expected a value"),
        (["d", "--model", "m", "--batch-size", "x"], "Error parsing --batch-size: invalid literal for int() with base"),
        (["d", "--model", "m", "--batch-size=x"], "Error parsing --batch-size: invalid literal for int() with base"),
        (["d", "--model", "m", "--batch-size", "0"], "batch-size 0: must be at least 1"),
        (["d", "--model", "m", "--flip", "sideways"], "--flip sideways: must be one of shared, none"),
        (["d", "--model", "m", "--sizes", "x"], "Error parsing --sizes: "),
        (["d", "--model", "m", "--levels", "P9"], "--levels: level 'P9': a level is one of"),
        (["d", "--model=m", "--batchsize", "2"], "unrecognized arguments: --batchsize 2; did you mean '--batch-size'?"),
        (["d", "--modle", "m"], "unrecognized arguments: --modle; did you mean '--model'?"),
        (["d", "--model", "m", "more"], "unrecognized arguments: more"),
        (["d", "--model", "m", "--command", "x"], "unrecognized arguments: --command x"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as error:
        read(*words)
    assert str(error.value).startswith(message)
    assert str(error.value).endswith(END)
    assert "\n" not in str(error.value)
    assert capsys.readouterr() == ("", "")


def test_options_are_read_in_every_spelling() -> None:
    expected = Options(data=Path("d"), model=Path("m"), draw=False, group=Group(batch_size=8), command=("verb",))
    assert read("d", "--model", "m", "--no-draw", "--batch-size", "8") == expected
    assert read("--model=m", "--batch_size=8", "--no-draw", "d") == expected
