"""Rules by which tyro reads options: defaults that help explains, and errors that are exceptions with one line of text.

tyro draws its own errors in boxes. Everything that can be wrong with a value is therefore checked in these rules, whose
`OptionError` tyro does not catch; what remains (words that are missing or unknown) is explained by `explain_refusal`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Annotated, Any, get_args, get_origin

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructTypeInfo,
)

from resim.regions.level import Level
from resim.runs.config import Resume

RESUME_WORDS = ("no", "yes", "auto")


class OptionError(Exception):
    """A mistake on the command line, in one line. It is no ValueError: tyro would catch that and draw a box."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of a verb."""

    name: str
    """As it is typed, such as `--batch-size`; of a positional one the field's name in capitals."""
    is_positional: bool
    is_required: bool
    takes_value: bool
    """Whether at least one word must come after it."""


class Rules:
    """The rules for one command line, and the options that they have met.

    Attributes:
        options: by name, in the order of their fields.
        registry: to activate while tyro reads.
    """

    def __init__(self) -> None:
        self.options: dict[str, Option] = {}
        self.registry = ConstructorRegistry()
        self.registry.primitive_rule(_level_rule)
        self.registry.primitive_rule(_resume_rule)
        self.registry.struct_rule(self._dataclass_rule)
        self._is_nested_call = False

    def _dataclass_rule(self, type_info: StructTypeInfo) -> StructConstructorSpec | None:
        """tyro's own rule for dataclasses, with checked values and defaults as people read them."""
        if self._is_nested_call or not dataclasses.is_dataclass(type_info.type):
            return None
        self._is_nested_call = True
        try:
            spec: Any = ConstructorRegistry.get_struct_spec(type_info)
        finally:
            self._is_nested_call = False
        if not isinstance(spec, StructConstructorSpec):  # the default does not fit the type
            return spec
        fields = tuple(
            dataclasses.replace(field, type=self._displayed_type(field.name, field.type, field.default))
            for field in spec.fields
        )
        return dataclasses.replace(spec, fields=fields, instantiate=_raising_option_error(spec.instantiate))

    def _displayed_type(self, field: str, annotation: Any, default: Any) -> Any:
        """An option's type with its checks, and with how help shows its default and its value; its metavar wins."""
        kind, *metadata = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
        kinds = [member for member in get_args(kind) if member is not type(None)]
        metavar = kinds[0].__name__.upper() if type(None) in get_args(kind) and isinstance(kinds[0], type) else None
        is_required = default is tyro.MISSING or default is tyro.constructors.MISSING_NONPROP
        hint = "(required)" if is_required else shown_default
        display = tyro.conf.arg(metavar=metavar, help_behavior_hint=hint)
        if tyro.conf.Fixed in metadata or (isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind != Level):
            return Annotated[(kind, display, *metadata)]

        is_positional = tyro.conf.Positional in metadata
        name = field.replace("_", "-")
        name = field.upper() if is_positional else f"--no-{name}" if default is True else f"--{name}"
        spec = None if kind is bool else ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kind, set()))
        takes_value = isinstance(spec, PrimitiveConstructorSpec) and spec.nargs != "*"
        self.options[name] = Option(
            name=name, is_positional=is_positional, is_required=is_required, takes_value=takes_value
        )
        if isinstance(spec, PrimitiveConstructorSpec):
            metadata = [*metadata, _checked(spec, name)]
        return Annotated[(kind, display, *metadata)]


def explain_refusal(argv: Sequence[str], options: Iterable[Option], prog: str) -> str:
    """Why tyro does not take some words, in one line.

    Args:
        argv: the words.
        options: all that there are.
        prog: the command, such as `resim detect train`.
    """
    by_name = {option.name: option for option in options if not option.is_positional}
    typed = [word.partition("=")[0].replace("_", "-") for word in argv]
    unknown = [word for word in typed if word.startswith("--") and word not in by_name]
    if unknown:
        return unrecognized(unknown, by_name)
    for name, word, after in zip_longest(typed, argv, argv[1:]):
        needs_value = name in by_name and by_name[name].takes_value and "=" not in word
        if needs_value and (after is None or after.startswith("--")):
            return f"{name}: expected a value"
    required = [option for option in options if option.is_required and option.name not in typed]
    missing = [option.name for option in required if not option.is_positional]
    missing = missing or [option.name for option in required]
    return f"Missing from {prog}: {' '.join(missing)}" if missing else "the options cannot be read"


def unrecognized(words: Sequence[str], names: Iterable[str]) -> str:
    """That words are no options, with the option that was probably meant by the first."""
    return f"unrecognized arguments: {' '.join(words)}{nearest(words[0], names)}"


def nearest(word: str, names: Iterable[str]) -> str:
    """What was probably meant, for the end of an error: `; did you mean 'pretrain'?`; empty where no name is near."""
    near = difflib.get_close_matches(word.lower(), names, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def shown_default(label: str) -> str:
    """What help says after an option's text; nothing where there is no value, which the text itself explains."""
    words = {"": "", "None": "", "True": "on", "False": "off"}.get(label, " ".join(map(_shown_word, label.split(" "))))
    return f"(default: {words})" if words else ""


def _shown_word(word: str) -> str:
    return f"{float(word):.4g}" if re.fullmatch(r"-?\d*\.\d{6,}", word) else word


def _raising_option_error(instantiate: Callable[..., Any]) -> Callable[..., Any]:
    """A constructor whose ValueErrors (fields that do not go together) are OptionErrors."""

    @functools.wraps(instantiate)  # help shows its docstring
    def construct(*args: Any, **kwargs: Any) -> Any:
        try:
            return instantiate(*args, **kwargs)
        except ValueError as error:
            raise OptionError(str(error)) from None

    return construct


def _checked(spec: PrimitiveConstructorSpec[Any], name: str) -> PrimitiveConstructorSpec[Any]:
    """The reader of a value, which names the option where the words are no value of it."""
    choices = spec.choices

    def parse(words: list[str]) -> Any:
        wrong = [word for word in words if choices is not None and word not in choices]
        if wrong:
            raise OptionError(f"{name} {wrong[0]}: must be one of {', '.join(choices or ())}")
        try:
            return spec.instance_from_str(words)
        except ValueError as error:
            raise OptionError(f"Error parsing {name}: {error}") from None

    return dataclasses.replace(spec, instance_from_str=parse, choices=None)


def _level_rule(type_info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Level] | None:
    """A level is one word on the command line: P4:window=48,step=32,negatives=all."""
    if type_info.type is not Level:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="LEVEL",
        instance_from_str=lambda words: _parse_level(words[0]),
        is_instance=lambda instance: isinstance(instance, Level),
        str_from_instance=lambda level: [str(level)],
    )


def _parse_level(text: str) -> Level:
    try:
        return Level.parse(text)
    except ValueError as error:  # tyro would hide its text, as it hides those of all members of a tuple
        raise OptionError(f"--levels: {error}") from None


def _resume_rule(type_info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """--resume is one word on the command line, which `with_resume_values` has put after a bare one."""
    if type_info.type != Resume:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="{no,yes,auto}",
        instance_from_str=lambda words: words[0],
        is_instance=lambda instance: isinstance(instance, bool | str),
        str_from_instance=lambda value: [{True: "yes", False: "no"}.get(value, str(value))],
        choices=RESUME_WORDS,
    )
