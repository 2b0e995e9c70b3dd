"""Pickles interpreted without Python's unpickler: no class is imported and no function named in the file is called.

The interpreter knows all opcodes up to protocol 5. The makers of `pickle_makers.py` make objects from plain data; an
object of any other class becomes a `PassedOver`, which contains the class's name and plain data and does nothing.
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

from resim.exchange.files.pickle_makers import MAKERS, Maker, scalar_key
from resim.exchange.files.pickle_values import Named, NumberArray, NumberKind, PassedOver
from resim.runs.pickle_limits import check_pickle

__all__ = ["NumberArray", "Rules", "interpret", "read_pickle"]

_CODE_MODULES = frozenset(
    """
    os posix nt subprocess pty runpy importlib imp ctypes socket shutil webbrowser pickle _pickle cPickle marshal sys
    """.split()  # noqa: SIM905 - a list of words is read more easily without quotes
)
_CODE_BUILTINS = frozenset({"eval", "exec", "execfile", "compile", "open", "__import__", "input", "breakpoint", "exit"})
_RECORDS = frozenset({"posix.uname_result", "nt.uname_result", "os.stat_result", "os.terminal_size"})  # plain data
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
class Rules:
    """The rules by which a pickle is interpreted, and a count of the objects that they passed over."""

    makers: Mapping[str, Maker] = field(default_factory=lambda: MAKERS)
    persistent: Callable[[Any], Any] | None = None
    """The object of a persistent id (a storage of PyTorch)."""
    passed_over: Counter[str] = field(default_factory=Counter)
    """Names of the classes and functions whose objects became stand-ins, and their numbers."""


def read_pickle(data: bytes, rules: Rules | None = None) -> Any:
    """The content of a pickle: plain data, arrays as `NumberArray`, and stand-ins for all other objects.

    Raises:
        pickle.UnpicklingError: it names functions that only an attack names, or contradicts itself.
        Exception: of many kinds, for a damaged one.
    """
    return interpret(io.BytesIO(data), rules or Rules())


def interpret(stream: io.BytesIO, rules: Rules) -> Any:
    """The content of the next pickle in a stream, whose position is then after that pickle.

    Raises:
        as `read_pickle`.
    """
    check_pickle(stream.getvalue(), stream.tell())
    machine = _Machine(rules)
    for name, argument in _operations(stream):
        if name == "STOP":
            return machine.stack.pop()
        for run in (_run_constant, _run_stack, _run_container, _run_object):
            if run(machine, name, argument):
                break
        else:
            raise pickle.UnpicklingError(f"it uses {name}")
    raise EOFError("a pickle without an end")


@dataclass
class _Machine:
    """The stack, the marks in it and the memo of an interpreter. Each `_run` function executes one group of opcodes."""

    rules: Rules
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def pop_to_mark(self) -> list[Any]:
        """Remove the values above the last mark, and the mark."""
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values


def _run_constant(machine: _Machine, name: str, argument: Any) -> bool:
    """Push a plain value; False for another opcode."""
    if name in _CONSTANTS:
        machine.stack.append(argument)
    elif name in _VALUES:
        machine.stack.append(_VALUES[name])
    elif name in _EMPTY:
        machine.stack.append(_EMPTY[name]())
    else:
        return False
    return True


def _run_stack(machine: _Machine, name: str, argument: Any) -> bool:
    """Move values between stack and memo; False for another opcode."""
    stack, marks, memo = machine.stack, machine.marks, machine.memo
    if name in ("GET", "BINGET", "LONG_BINGET"):
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
        machine.pop_to_mark()
    elif name == "DUP":
        stack.append(stack[-1])
    else:
        return name in ("PROTO", "FRAME")
    return True


def _run_container(machine: _Machine, name: str, argument: Any) -> bool:
    """Make or fill a container of Python; False for another opcode."""
    stack = machine.stack
    if name in _TUPLES:
        values = stack[-_TUPLES[name] :]
        del stack[-_TUPLES[name] :]
        stack.append(tuple(values))
    elif name in ("TUPLE", "LIST"):
        stack.append(tuple(machine.pop_to_mark()) if name == "TUPLE" else machine.pop_to_mark())
    elif name == "FROZENSET":
        stack.append(frozenset(map(scalar_key, machine.pop_to_mark())))
    elif name == "DICT":
        values = machine.pop_to_mark()
        stack.append({})
        _set_items(stack[-1], values)
    elif name in ("SETITEM", "SETITEMS"):
        values = machine.pop_to_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
        _set_items(stack[-1], values)
    elif name in ("APPEND", "APPENDS", "ADDITEMS"):
        values = [stack.pop()] if name == "APPEND" else machine.pop_to_mark()
        _append(stack[-1], values)
    else:
        return False
    return True


def _run_object(machine: _Machine, name: str, argument: Any) -> bool:
    """Name a class, or make an object by the rules; False for another opcode."""
    stack, rules = machine.stack, machine.rules
    if name in ("GLOBAL", "INST"):
        module, _, attribute = argument.partition(" ")
        named = _name(module, attribute)
        stack.append(named if name == "GLOBAL" else _make(named, tuple(machine.pop_to_mark()), rules))
    elif name == "STACK_GLOBAL":
        attribute, module = stack.pop(), stack.pop()
        if not isinstance(module, str) or not isinstance(attribute, str):
            raise pickle.UnpicklingError("it names a class by a value other than a text")
        stack.append(_name(module, attribute))
    elif name in ("REDUCE", "NEWOBJ"):
        arguments = stack.pop()
        stack.append(_make(stack.pop(), arguments, rules))
    elif name == "NEWOBJ_EX":
        keywords, arguments = stack.pop(), stack.pop()
        stack.append(_make(stack.pop(), arguments, rules, keywords))
    elif name == "OBJ":
        kind, *arguments = machine.pop_to_mark()
        stack.append(_make(kind, tuple(arguments), rules))
    elif name == "BUILD":
        state = stack.pop()
        _build(stack[-1], state)
    elif name in ("PERSID", "BINPERSID"):
        key = stack.pop() if name == "BINPERSID" else argument
        load = rules.persistent
        stack.append(load(key) if load is not None else _pass_over("persistent id", (key,), rules))
    elif name.startswith("EXT"):
        stack.append(_pass_over(f"copyreg extension {argument}", (), rules))
    elif name in ("NEXT_BUFFER", "READONLY_BUFFER"):
        raise pickle.UnpicklingError("it keeps its arrays outside the file (pickle's buffer_callback)")
    else:
        return False
    return True


def _operations(stream: BinaryIO) -> Iterator[tuple[str, Any]]:
    """Opcodes with their arguments, up to STOP."""
    while True:
        code = stream.read(1)
        operation = _OPCODES.get(code)
        if operation is None:
            raise ValueError(f"no pickle: byte {code!r}")
        if operation.name == "STRING":  # Python 2's bytes, which pickletools reads as ASCII
            line = stream.readline().strip()
            if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
                raise ValueError("no pickle: a text without quotes")
            yield "STRING", codecs.escape_decode(line[1:-1])[0].decode("latin1")
            continue
        argument: Any = None if operation.arg is None else operation.arg.reader(stream)
        if operation.name == "PROTO" and argument > pickle.HIGHEST_PROTOCOL:
            raise pickle.UnpicklingError(f"it is a pickle of protocol {argument}: save it with protocol 5")
        yield operation.name, argument
        if operation.name == "STOP":
            return


def _name(module: str, attribute: str) -> Named:
    """A class or function by its name.

    All names are inert. Those of commands, of other code and of pickles within pickles are refused nevertheless: no
    checkpoint has them, and the user must be warned before another program opens the file.
    """
    builtin = module in ("builtins", "__builtin__")
    full = f"{module}.{attribute}"
    is_code = (builtin and attribute in _CODE_BUILTINS) or module.partition(".")[0] in _CODE_MODULES
    if is_code and full not in _RECORDS:
        raise pickle.UnpicklingError(f"it imports {full}")
    return Named(full)


def _make(kind: Any, arguments: Any, rules: Rules, keywords: Any = None) -> Any:
    """The object that a class or function makes of these arguments, or a stand-in."""
    if not isinstance(arguments, tuple):
        raise pickle.UnpicklingError("it makes an object without arguments")
    if isinstance(kind, Named):
        if kind.full in rules.makers and not keywords:
            value = rules.makers[kind.full](*arguments)
            if isinstance(value, PassedOver):
                rules.passed_over[value.kind] += 1
            return value
        if kind.full.rpartition(".")[2] in _INDIRECT and arguments and isinstance(arguments[0], Named):
            return _pass_over(arguments[0].full, arguments[1:], rules)
        return _pass_over(kind.full, (*arguments, keywords), rules)
    return _pass_over(f"the result of {kind.kind}" if isinstance(kind, PassedOver) else "an object", arguments, rules)


def _pass_over(kind: str, arguments: tuple[Any, ...], rules: Rules) -> PassedOver:
    rules.passed_over[kind] += 1
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
    """Set the state as `__setstate__` would; only the fields of the classes of `pickle_values.py` are set."""
    if isinstance(target, NumberKind):
        target.set_state(state)
    elif isinstance(target, NumberArray):
        _, shape, kind, column_major, data = state if len(state) == 5 else (0, *state)
        target.fill(shape, kind, column_major, data)
    elif isinstance(target, PassedOver):
        target.state = state
    elif isinstance(target, Named):
        raise pickle.UnpicklingError(f"it sets the state of a function or class ({target.full})")
    elif not isinstance(target, dict):  # the attributes of an OrderedDict (PyTorch's _metadata) are not needed
        raise pickle.UnpicklingError(f"it sets the state of a {type(target).__name__}")
