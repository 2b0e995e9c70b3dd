"""Pickles interpreted without Python's own machinery: no class is imported, no function of the file's is called.

The interpreter below knows every opcode up to protocol 5. What a pickle asks to be made is made by `makers.py`, of
plain data; an object of any other class becomes a `PassedOver`, which holds its name and plain data and does nothing.
"""

from __future__ import annotations

import codecs
import io
import pickle
import pickletools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from resim.exchange.inert import Named, NumberArray, NumberKind, PassedOver
from resim.exchange.makers import MAKERS, Maker, scalar_key

__all__ = ["NumberArray", "Reading", "interpret", "read_pickle"]

_CODE_MODULES = frozenset(
    """
    os posix nt subprocess pty runpy importlib imp ctypes socket shutil webbrowser pickle _pickle cPickle marshal sys
    """.split()  # noqa: SIM905 - a list of words is read more easily without quotes
)
_CODE_BUILTINS = frozenset({"eval", "exec", "execfile", "compile", "open", "__import__", "input", "breakpoint", "exit"})
_CONSTANTS = frozenset(
    """
    INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE SHORT_BINUNICODE
    BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8
    """.split()  # noqa: SIM905
)
_OPCODES = {operation.code.encode("latin1"): operation for operation in pickletools.opcodes}
_VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": set}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_INDIRECT = ("_reconstructor", "__newobj__", "__newobj_ex__")  # of copyreg: the class comes first among the arguments


@dataclass
class Reading:
    """How a pickle is read, and what was passed over in it."""

    makers: Mapping[str, Maker] = field(default_factory=lambda: MAKERS)
    persistent: Callable[[Any], Any] | None = None
    """What a persistent id stands for (PyTorch's storages)."""
    passed_over: Counter[str] = field(default_factory=Counter)
    """Names of classes and functions whose objects became stand-ins, and how often."""


def read_pickle(data: bytes, reading: Reading | None = None) -> Any:
    """What a pickle holds: plain data, arrays as `NumberArray`, and stand-ins for everything else.

    Raises:
        pickle.UnpicklingError: it asks for what only an attack asks for, or contradicts itself.
        Exception: of many kinds, for a damaged one.
    """
    return interpret(io.BytesIO(data), reading or Reading())


def interpret(stream: BinaryIO, reading: Reading) -> Any:
    """The next pickle of a stream, which then stands behind it.

    Raises:
        as `read_pickle`.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def above_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for name, argument in _operations(stream):
        if name in _CONSTANTS:
            stack.append(argument)
        elif name in _VALUES:
            stack.append(_VALUES[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            items = stack[-_TUPLES[name] :]
            del stack[-_TUPLES[name] :]
            stack.append(tuple(items))
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "POP" and marks and marks[-1] == len(stack):
            marks.pop()
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            above_mark()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in ("TUPLE", "LIST"):
            stack.append(tuple(above_mark()) if name == "TUPLE" else above_mark())
        elif name == "FROZENSET":
            stack.append(frozenset(map(scalar_key, above_mark())))
        elif name == "DICT":
            items = above_mark()
            stack.append({})
            _set_items(stack[-1], items)
        elif name in ("SETITEM", "SETITEMS"):
            items = above_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            _set_items(stack[-1], items)
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            items = [stack.pop()] if name == "APPEND" else above_mark()
            _append(stack[-1], items)
        elif name in ("GLOBAL", "INST"):
            module, _, attribute = argument.partition(" ")
            named = _named(module, attribute)
            stack.append(named if name == "GLOBAL" else _made(named, tuple(above_mark()), reading))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            if not isinstance(module, str) or not isinstance(attribute, str):
                raise pickle.UnpicklingError("it names a class by what is no text")
            stack.append(_named(module, attribute))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments = stack.pop()
            stack.append(_made(stack.pop(), arguments, reading))
        elif name == "NEWOBJ_EX":
            keywords, arguments = stack.pop(), stack.pop()
            stack.append(_made(stack.pop(), arguments, reading, keywords))
        elif name == "OBJ":
            kind, *rest = above_mark()
            stack.append(_made(kind, tuple(rest), reading))
        elif name == "BUILD":
            state = stack.pop()
            _build(stack[-1], state)
        elif name in ("PERSID", "BINPERSID"):
            key = stack.pop() if name == "BINPERSID" else argument
            known = reading.persistent
            stack.append(known(key) if known is not None else _passed_over("persistent id", (key,), reading))
        elif name.startswith("EXT"):
            stack.append(_passed_over(f"copyreg extension {argument}", (), reading))
        elif name in ("NEXT_BUFFER", "READONLY_BUFFER"):
            raise pickle.UnpicklingError("it keeps its arrays outside of the file (pickle's buffer_callback)")
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise pickle.UnpicklingError(f"it uses {name}")
    raise EOFError("a pickle without an end")


def _operations(stream: BinaryIO) -> Iterator[tuple[str, Any]]:
    """Opcodes with their arguments, up to STOP."""
    while True:
        code = stream.read(1)
        operation = _OPCODES.get(code)
        if operation is None:
            raise ValueError(f"no pickle: byte {code!r}")
        if operation.name == "STRING":  # Python 2's bytes, which pickletools takes for ASCII
            line = stream.readline().strip()
            if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
                raise ValueError("no pickle: a text without quotes")
            yield "STRING", codecs.escape_decode(line[1:-1])[0].decode("latin1")
            continue
        argument: Any = None if operation.arg is None else operation.arg.reader(stream)
        if operation.name == "PROTO" and argument > pickle.HIGHEST_PROTOCOL:
            raise pickle.UnpicklingError(f"it is a pickle of protocol {argument}; up to 5 are known")
        yield operation.name, argument
        if operation.name == "STOP":
            return


def _named(module: str, attribute: str) -> Named:
    """A class or function by its name.

    All names are inert. Those of commands, of other code and of pickles within pickles are refused all the same: no
    checkpoint has them, and a person should know before another program opens the file.
    """
    builtin = module in ("builtins", "__builtin__")
    if (builtin and attribute in _CODE_BUILTINS) or module.partition(".")[0] in _CODE_MODULES:
        raise pickle.UnpicklingError(f"it asks for {module}.{attribute}")
    return Named(f"{module}.{attribute}")


def _made(kind: Any, arguments: Any, reading: Reading, keywords: Any = None) -> Any:
    """What a class or function would give for these arguments."""
    if not isinstance(arguments, tuple):
        raise pickle.UnpicklingError("it makes an object of what are no arguments")
    if isinstance(kind, Named):
        if kind.full in reading.makers and not keywords:
            made = reading.makers[kind.full](*arguments)
            if isinstance(made, PassedOver):
                reading.passed_over[made.kind] += 1
            return made
        if kind.full.rpartition(".")[2] in _INDIRECT and arguments and isinstance(arguments[0], Named):
            return _passed_over(arguments[0].full, arguments[1:], reading)
        return _passed_over(kind.full, (*arguments, keywords), reading)
    return _passed_over(f"what {kind.kind} gives" if isinstance(kind, PassedOver) else "an object", arguments, reading)


def _passed_over(kind: str, arguments: tuple[Any, ...], reading: Reading) -> PassedOver:
    reading.passed_over[kind] += 1
    return PassedOver(kind, arguments)


def _set_items(target: Any, items: list[Any]) -> None:
    pairs = dict(zip(map(scalar_key, items[::2]), items[1::2], strict=True))
    if isinstance(target, PassedOver):
        target.items |= pairs
    elif isinstance(target, dict):
        target |= pairs
    else:
        raise pickle.UnpicklingError(f"it sets items of a {type(target).__name__}")


def _append(target: Any, items: list[Any]) -> None:
    if isinstance(target, PassedOver):
        target.members += items
    elif isinstance(target, list):
        target += items
    elif isinstance(target, set):
        target |= set(map(scalar_key, items))
    else:
        raise pickle.UnpicklingError(f"it appends to a {type(target).__name__}")


def _build(target: Any, state: Any) -> None:
    """What `__setstate__` would do; nothing but a stand-in's own fields is ever set."""
    if isinstance(target, NumberKind):
        target.take_state(state)
    elif isinstance(target, NumberArray):
        _, shape, kind, column_major, data = state if len(state) == 5 else (0, *state)
        target.fill(shape, kind, column_major, data)
    elif isinstance(target, PassedOver):
        target.state = state
    elif isinstance(target, Named):
        raise pickle.UnpicklingError(f"it sets the state of a function or class ({target.full})")
    elif not isinstance(target, dict):  # an OrderedDict's attributes (PyTorch's _metadata) are of no use here
        raise pickle.UnpicklingError(f"it sets the state of a {type(target).__name__}")
