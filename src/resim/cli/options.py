"""Options of the `resim` command: read into dataclasses, and every mistake told in one line."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, get_args, get_origin

import tyro
from rich.console import Console
from rich.table import Table

from resim import recipes
from resim.errors import UserError
from resim.regions.level import Level
from resim.runs.config import AnyRecipe, Recipe, Resume, read_recipe

T = TypeVar("T")
Sources = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DIR [DIR ...]")]

_registry = tyro.constructors.ConstructorRegistry()


@_registry.primitive_rule
def _level_rule(
    type_info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Level] | None:
    """A level is one word on the command line: P4:window=48,step=32,negatives=all."""
    if type_info.type is not Level:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="LEVEL",
        instance_from_str=lambda words: _parse_level(words[0]),
        is_instance=lambda instance: isinstance(instance, Level),
        str_from_instance=lambda level: [str(level)],
    )


_inner = False  # whether `_options_rule` is called by itself, to have tyro's own fields


@_registry.struct_rule
def _options_rule(type_info: tyro.constructors.StructTypeInfo) -> tyro.constructors.StructConstructorSpec | None:
    """Options are shown as people read them: defaults that say something, and no `{None}|` before a value's name."""
    global _inner
    if _inner or not dataclasses.is_dataclass(type_info.type):
        return None
    _inner = True
    try:
        spec: Any = tyro.constructors.ConstructorRegistry.get_struct_spec(type_info)
    finally:
        _inner = False
    if not isinstance(spec, tyro.constructors.StructConstructorSpec):  # a default that does not fit
        return spec
    fields = tuple(dataclasses.replace(field, type=_displayed(field.type, field.default)) for field in spec.fields)
    return dataclasses.replace(spec, fields=fields)


def _displayed(annotation: Any, default: Any) -> Any:
    """An option's type with how help shows its default and, where None is one, its value; its own metavar wins."""
    kind, *more = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    kinds = [one for one in get_args(kind) if one is not type(None)]
    metavar = kinds[0].__name__.upper() if type(None) in get_args(kind) and isinstance(kinds[0], type) else None
    hint = "(required)" if default is tyro.MISSING or default is tyro.constructors.MISSING_NONPROP else shown_default
    return Annotated[(kind, tyro.conf.arg(metavar=metavar, help_behavior_hint=hint), *more)]


def shown_default(label: str) -> str:
    """What help says after an option's text; nothing where there is no value, which the text itself explains."""
    words = {"": "", "None": "", "True": "on", "False": "off"}.get(label, " ".join(map(_shown_word, label.split(" "))))
    return f"(default: {words})" if words else ""


def _shown_word(word: str) -> str:
    return f"{float(word):.4g}" if re.fullmatch(r"-?\d*\.\d{6,}", word) else word


@_registry.primitive_rule
def _resume_rule(
    type_info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """--resume is one word on the command line, which `with_resume_values` has put behind a bare one."""
    if type_info.type != Resume:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="{no,yes,auto}",
        instance_from_str=lambda words: words[0],
        is_instance=lambda instance: isinstance(instance, bool | str),
        str_from_instance=lambda value: [{True: "yes", False: "no"}.get(value, str(value))],
        choices=_RESUME,
    )


_RESUME = ("no", "yes", "auto")


def with_resume_values(argv: Sequence[str]) -> list[str]:
    """The words with `yes` behind every `--resume` that has no value of its own: it was a flag once, and still is."""
    words: list[str] = []
    for word, after in zip_longest(argv, argv[1:], fillvalue=""):
        words.append(word)
        if word == "--resume" and after not in _RESUME:
            words.append("yes")
    return words


class _OptionError(Exception):
    """A value on the command line that cannot be read; tyro passes it on where it would hide a ValueError's text."""


def _parse_level(text: str) -> Level:
    try:
        return Level.parse(text)
    except ValueError as error:
        raise _OptionError(f"--levels: {error}") from None


def read_options(kind: type[T], argv: Sequence[str], verb: str, description: str, default: T | None = None) -> T:
    """Options as a dataclass.

    Raises:
        UserError: options that cannot be read, in one line.
    """
    settings: dict[str, Any] = {} if default is None else {"default": default}
    told = io.StringIO()
    try:
        with _registry, contextlib.redirect_stderr(told):
            return tyro.cli(
                kind,
                args=with_resume_values(argv),
                prog=f"resim {verb}",
                description=description,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
                **settings,
            )
    except _OptionError as error:
        raise UserError(str(error)) from None
    except SystemExit as stop:
        if stop.code in (0, None):  # --help
            raise
        raise UserError(f"{_first_paragraph(told.getvalue())} (resim {verb} --help explains the options)") from None


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are told in one line, as all others."""

    def error(self, message: str) -> NoReturn:
        """Raise it, where argparse would print and exit."""
        raise UserError(f"{message} ({self.prog} --help explains the options)")


def _first_paragraph(box: str) -> str:
    """What tyro's box says, up to its first rule, as one line. Where the output is no UTF-8 the box is drawn in -."""
    lines = [line.strip("│╭╮╰╯ ") for line in box.splitlines()]
    if len(lines) > 1 and set(lines[1]) == {"-"}:  # below a title
        lines = lines[2:]
    words: list[str] = []
    for text in lines:
        if text.strip("─- ") == "" and words:
            break
        if "─" not in text:
            words += text.split()
    return " ".join(words) or "the options cannot be read"


def named_or_stored(argv: Sequence[str], verb: str) -> tuple[str | None, Path | None]:
    """What --recipe names, and the config.json of the run that is to be resumed where it names none."""
    parser = OneLineParser(prog=f"resim {verb}", add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", default="no")
    words = with_resume_values([word for word in argv if word not in ("-h", "--help")])
    known, _ = parser.parse_known_args(words)
    if known.recipe is not None or known.resume == "no" or known.out is None:
        return known.recipe, None
    stored = known.out / "config.json"
    return None, stored if stored.exists() else None


def print_recipes(
    argv: Sequence[str],
    verb: str,
    description: str,
    columns: Sequence[str],
    table: Mapping[str, tuple[Callable[[], AnyRecipe], Sequence[object]]],
    find: Callable[[str], AnyRecipe],
) -> None:
    """List recipes, or print the one that is named whole as JSON.

    Args:
        argv: a name, or nothing.
        verb: as it is typed.
        description: of the verb.
        columns: headings between the name and what the recipe is.
        table: by name, the function that makes the recipe, and its cells.
        find: the recipe of a name or file.

    Raises:
        UserError: no recipe of that name.
    """
    parser = OneLineParser(prog=f"resim {verb}", description=description)
    parser.add_argument("name", nargs="?", help="a recipe, printed with every field")
    chosen = parser.parse_args(argv).name
    if chosen:
        print(json.dumps(find(chosen).to_json(), indent=2))
        return
    drawn = Table("recipe", *columns, "what", box=None, padding=(0, 2, 0, 0))
    for name, (make, cells) in table.items():
        drawn.add_row(name, *map(str, cells), (make.__doc__ or "").strip())
    Console(width=None if sys.stdout.isatty() else 180).print(drawn)


def nearest(word: str, names: Iterable[str]) -> str:
    """What was probably meant, for the end of an error: `; did you mean 'pretrain'?`; empty where no name is near."""
    near = difflib.get_close_matches(word.lower(), names, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def recipe_called(name: str) -> Recipe:
    """The recipe of a name, or of a .json file.

    Raises:
        UserError: there is none.
    """
    if name in recipes.RECIPES:
        return recipes.RECIPES[name]()
    if Path(name).suffix == ".json":
        return read_recipe(Path(name))
    raise UserError(
        f"no recipe {name!r}: one of {', '.join(recipes.RECIPES)}, or a .json file that holds one"
        f"{nearest(name, recipes.RECIPES)}"
    )
