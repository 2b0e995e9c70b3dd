"""Limits of what a pickle may build, verified before it is read.

Hashing, comparing and printing a tuple walk over all of it, in C and without a limit: a tuple nested a million deep
overflows the stack of the process, and one that contains the one before twice, sixty times over, has 2^60 paths.
PyTorch searches its message on a pickle that it refuses with an expression whose time grows with the square of the
length of a name in it: more than 25 s for 250,000 letters.
"""

from __future__ import annotations

import pickle
import pickletools
import struct

MAX_DEPTH = 100
"""Levels of tuples in tuples; checkpoints have fewer than ten."""
MAX_PATHS = 10_000_000
"""Values in a tuple, each counted as often as it is reached."""
MAX_OPCODES = 10_000_000
"""Opcodes of a pickle; a checkpoint with an optimiser has some ten thousand."""
MAX_NAME = 1000
"""Bytes of the name of a class or function."""

_NAME = 0  # in place of a value: the name of a class or function
_LEVEL = 1 << 40  # a value is described by one number: its depth times this, plus its paths
_PATHS = _LEVEL - 1
_SIZES = {"<B": 1, "<H": 2, "<I": 4, "<Q": 8}


def check_pickle(data: bytes, start: int = 0, *, plain: bool = False) -> None:
    """Raise if a pickle nests or repeats tuples, or names classes, beyond the limits; no object is made.

    Args:
        data: contains the pickle.
        start: its first byte.
        plain: raise too if it calls what is no name of a class or function, as PyTorch does, with the whole value in
            its message.

    Raises:
        pickle.UnpicklingError: beyond a limit.
        ValueError: cut, or with opcodes that contradict each other.
    """
    try:
        _run(data, start, plain)
    except (IndexError, KeyError, ValueError, struct.error):
        raise ValueError("a pickle whose opcodes are cut, or contradict each other") from None


def _run(data: bytes, position: int, plain: bool) -> None:
    """Run the opcodes on depths and paths in place of values."""
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[int, int] = {}
    for _ in range(MAX_OPCODES):
        code = data[position]
        position += 1
        if code in _TUPLES:
            count = _TUPLES[code]
            start = len(stack) - count if count else marks.pop()
            if start < 0:
                raise IndexError
            parts = stack[start:]
            del stack[start:]
            stack.append(_tuple_of(parts))
        elif code in _PUSHES:
            position = _skip(data, position, _PUSHES[code])
            stack.append(_NAME if code == _GLOBAL else 1)
        elif code in _PUTS:
            index, position = _argument(data, position, _PUTS[code])
            memo[index] = stack[-1]
        elif code in _GETS:
            index, position = _argument(data, position, _GETS[code])
            stack.append(memo[index])
        elif code == _MEMOIZE:
            memo[len(memo)] = stack[-1]
        elif code == _MARK:
            marks.append(len(stack))
        elif code == _DUP:
            stack.append(stack[-1])
        elif code == _POP and marks and marks[-1] == len(stack):
            marks.pop()
        elif code in _REPLACES:  # takes values from the stack, and leaves one without depth, or none
            before, after, argument = _REPLACES[code]
            position = _skip(data, position, argument)
            keep = marks.pop() if before is None else len(stack) - before
            if keep < 0:
                raise IndexError
            if plain and code in _CALLS and stack[keep] != _NAME:
                raise pickle.UnpicklingError("it calls a value that is no class or function")
            del stack[keep:]
            stack.extend((_NAME if code == _STACK_GLOBAL else 1,) * after)
        elif code in _NOTHING:
            position = _skip(data, position, _NOTHING[code])
        elif code == _STOP:
            return
        else:
            raise KeyError(code)
    raise pickle.UnpicklingError(f"it has more than {MAX_OPCODES} opcodes, which no checkpoint has")


def _tuple_of(parts: list[int]) -> int:
    depth = (max(parts) // _LEVEL if parts else 0) + 1
    paths = sum(part & _PATHS for part in parts) + 1
    if depth > MAX_DEPTH:
        raise pickle.UnpicklingError(f"it nests tuples more than {MAX_DEPTH} levels deep, which no checkpoint does")
    if paths > MAX_PATHS:
        raise pickle.UnpicklingError(f"it has a tuple of more than {MAX_PATHS} values, which no checkpoint has")
    return depth * _LEVEL + paths


def _skip(data: bytes, position: int, kind: str | int) -> int:
    """The position after an argument: a number of bytes, a count and that many bytes, or lines of text."""
    if isinstance(kind, int):
        return position + kind
    if kind in _SIZES:
        (count,) = struct.unpack_from(kind, data, position)
        return position + _SIZES[kind] + count
    begin = position
    for _ in range(len(kind)):
        position = _end_of_line(data, position)
    if kind == _TWO_LINES and position - begin > MAX_NAME:
        raise pickle.UnpicklingError(f"it names a class by more than {MAX_NAME} letters, which no checkpoint does")
    return position


def _argument(data: bytes, position: int, kind: str) -> tuple[int, int]:
    """The number of an entry of the memo, and the position after it."""
    if kind in _SIZES:
        return struct.unpack_from(kind, data, position)[0], position + _SIZES[kind]
    end = _end_of_line(data, position)
    return int(data[position : end - 1]), end


def _end_of_line(data: bytes, position: int) -> int:
    return data.index(b"\n", position) + 1


_TWO_LINES = "\n\n"  # a module and a name in it
_CODES = {operation.name: ord(operation.code) for operation in pickletools.opcodes}
_MARK, _STOP, _DUP, _POP = (_CODES[name] for name in ("MARK", "STOP", "DUP", "POP"))
_MEMOIZE, _GLOBAL, _STACK_GLOBAL = (_CODES[name] for name in ("MEMOIZE", "GLOBAL", "STACK_GLOBAL"))
_CALLS = frozenset(_CODES[name] for name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ"))
_TUPLES = {_CODES[name]: count for name, count in (("TUPLE", 0), ("TUPLE1", 1), ("TUPLE2", 2), ("TUPLE3", 3))}
_PUTS = {_CODES["PUT"]: "\n", _CODES["BINPUT"]: "<B", _CODES["LONG_BINPUT"]: "<I"}
_GETS = {_CODES["GET"]: "\n", _CODES["BINGET"]: "<B", _CODES["LONG_BINGET"]: "<I"}
_PUSHES: dict[int, str | int] = {
    _CODES[name]: argument
    for argument, names in {
        0: "NONE NEWTRUE NEWFALSE EMPTY_DICT EMPTY_LIST EMPTY_TUPLE EMPTY_SET NEXT_BUFFER",
        1: "BININT1 EXT1",
        2: "BININT2 EXT2",
        4: "BININT EXT4",
        8: "BINFLOAT",
        "\n": "INT LONG FLOAT STRING UNICODE PERSID",
        _TWO_LINES: "GLOBAL",
        "<B": "LONG1 SHORT_BINSTRING SHORT_BINUNICODE SHORT_BINBYTES",
        "<I": "LONG4 BINSTRING BINUNICODE BINBYTES",
        "<Q": "BINUNICODE8 BINBYTES8 BYTEARRAY8",
    }.items()
    for name in names.split()
}
_REPLACES: dict[int, tuple[int | None, int, str | int]] = {
    _CODES[name]: (before, after, _TWO_LINES if name == "INST" else 0)
    for name, before, after in (
        ("POP", 1, 0), ("POP_MARK", None, 0), ("LIST", None, 1), ("DICT", None, 1), ("FROZENSET", None, 1),
        ("APPEND", 1, 0), ("APPENDS", None, 0), ("ADDITEMS", None, 0), ("SETITEM", 2, 0), ("SETITEMS", None, 0),
        ("REDUCE", 2, 1), ("NEWOBJ", 2, 1), ("NEWOBJ_EX", 3, 1), ("OBJ", None, 1), ("INST", None, 1), ("BUILD", 1, 0),
        ("STACK_GLOBAL", 2, 1), ("BINPERSID", 1, 1), ("READONLY_BUFFER", 1, 1),
    )
}  # fmt: skip
_NOTHING = {_CODES["PROTO"]: 1, _CODES["FRAME"]: 8}
