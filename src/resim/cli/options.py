"""Options of the `resim` command: words are read into a dataclass, and every mistake is one line."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from resim.cli.rules import RESUME_WORDS, OptionError, Rules, explain_refusal, unrecognized
from resim.errors import UserError

T = TypeVar("T")
Sources = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DIR [DIR ...]")]
Command = Annotated[tuple[str, ...], tyro.conf.Fixed, tyro.conf.Suppress]
"""The words of the command itself, which a verb's `defaults` fills in; no option."""


def read_options(kind: type[T], argv: Sequence[str], verb: str, description: str, default: T | None = None) -> T:
    """Read the options of a verb.

    Args:
        kind: dataclass of the options.
        argv: words after the verb.
        verb: as it is typed, such as `detect train`.
        description: of the verb, for --help, which prints and exits with code 0.
        default: options where the words name none; None: those of the dataclass.

    Raises:
        UserError: words that cannot be read, in one line.
    """
    settings: dict[str, Any] = {} if default is None else {"default": default}
    words, prog, rules = with_resume_values(argv), f"resim {verb}", Rules()
    try:
        with rules.registry, contextlib.redirect_stderr(io.StringIO()):  # boxes, in place of which a line is raised
            options, unknown = tyro.cli(
                kind,
                args=words,
                prog=prog,
                description=description,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
                return_unknown_args=True,
                **settings,
            )
        if not unknown:
            return options
        mistake = unrecognized(unknown, rules.options)
    except OptionError as error:
        mistake = str(error)
    except SystemExit as stop:
        if stop.code in (0, None):  # --help
            raise
        mistake = explain_refusal(words, rules.options.values(), prog)
    raise UserError(f"{mistake} ({prog} --help explains the options)")


def with_resume_values(argv: Sequence[str]) -> list[str]:
    """The words with `yes` after every `--resume` that has no value: it was a flag once, and still is."""
    words: list[str] = []
    for word, after in zip_longest(argv, argv[1:], fillvalue=""):
        words.append(word)
        if word == "--resume" and after not in RESUME_WORDS:
            words.append("yes")
    return words
