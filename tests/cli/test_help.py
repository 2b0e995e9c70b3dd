"""What `--help` shows of options: defaults that say something, values without `{None}`, what is required."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import tyro

from resim.cli.main import VERBS, main
from resim.cli.options import read_options
from resim.cli.rules import shown_default

Captured = pytest.CaptureFixture[str]


def words_of(box: str) -> str:
    """Help without line breaks and its frames, whose characters are others where the output is no UTF-8."""
    return re.sub(r"(?:[│|╭╮╰╯─+\s]|-{3,})+", " ", box)


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("", ""), ("None", ""), ("True", "(default: on)"), ("False", "(default: off)"), ("0", "(default: 0)"),
        ("0.75 1.3333333333333333", "(default: 0.75 1.333)"), ("0.1111111111111111", "(default: 0.1111)"),
        ("0.999", "(default: 0.999)"), ("1e-06", "(default: 1e-06)"), ("knn linear", "(default: knn linear)"),
        ("resim-fpn", "(default: resim-fpn)"),
    ],
)  # fmt: skip
def test_a_default_is_shown_as_it_is_read(label: str, shown: str) -> None:
    assert shown_default(label) == shown


@pytest.mark.parametrize(
    "verb", [[verb] for verb in VERBS] + [["detect", part] for part in ("train", "eval", "predict")], ids=" ".join
)
def test_no_help_shows_a_default_that_says_nothing(verb: list[str], capsys: Captured) -> None:
    with contextlib.suppress(SystemExit):
        main([*verb, "--help"])
    text = words_of(capsys.readouterr().out)
    assert "usage: resim" in text
    assert re.findall(r"\(default: ?\)|\(default: (?:None|True|False|MISSING)\)|\{None\}|MISSING", text) == []


@dataclass(frozen=True, kw_only=True)
class Tail:
    """A group of options."""

    sizes: tuple[int, ...] = ()
    """Sizes; default: all."""
    scale: float = 1 / 3
    """A share."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a verb."""

    places: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DIR [DIR ...]")]
    """Folders."""
    name: str | None = None
    """A name; default: none."""
    point: Annotated[str | None, tyro.conf.arg(metavar="X,Y")] = None
    """A place."""
    draw: bool = True
    """Draw it."""
    tail: Tail


def test_the_display_of_each_kind_of_option(capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        read_options(Options, ["--help"], "verb", "A verb.", Options(places=tyro.MISSING, tail=Tail()))
    text = words_of(capsys.readouterr().out)
    for shown in (
        "DIR [DIR ...] Folders. (required) ",
        "--name STR A name; default: none. --point X,Y A place. --no-draw Draw it. (default: on) ",
        "--sizes [INT [INT ...]] Sizes; default: all. --scale FLOAT A share. (default: 0.3333) ",
    ):
        assert shown in text


def test_options_are_read_as_before() -> None:
    default = Options(places=tyro.MISSING, tail=Tail())
    words = ["a", "b", "--no-draw", "--sizes", "1", "2", "--name", "x"]
    assert read_options(Options, words, "verb", "", default) == Options(
        places=(Path("a"), Path("b")), name="x", draw=False, tail=Tail(sizes=(1, 2))
    )
    assert read_options(Options, ["a"], "verb", "", default).tail.scale == 1 / 3
