"""Pickles read without running anything in them: plain data and NumPy's array reconstruction, and nothing else.

Not even NumPy is called with what a file says. Its constructors are represented by stand-ins that hold a shape, a kind
of number and bytes, and these must agree before an array is made of them.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

_NUMBERS = frozenset({"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"})


class _StandIn:
    """Nothing can be set on these but by their own `__setstate__`: BUILD would reach any other attribute."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> None:
        raise pickle.UnpicklingError(f"it sets {name!r} on what it reads")


class NumberKind(_StandIn):
    """`numpy.dtype` in a pickle: a kind of number and its byte order."""

    __slots__ = ("code", "order")
    code: str
    order: str

    def __init__(self, code: object, *_: object) -> None:
        text = code.decode("ascii") if isinstance(code, bytes) else code
        if not isinstance(text, str) or text.lstrip("<=|>") not in _NUMBERS:
            raise pickle.UnpicklingError(f"it holds an array of {code!r}, not of numbers")
        object.__setattr__(self, "code", text.lstrip("<=|>"))
        object.__setattr__(self, "order", ">" if text.startswith(">") else "<")

    def __setstate__(self, state: Any) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "=") or any(part not in (None, ()) for part in state[2:5]):
            raise pickle.UnpicklingError("it holds an array of records, not of numbers")
        object.__setattr__(self, "order", ">" if order == ">" else "<")


class NumberArray(_StandIn):
    """`numpy.ndarray` in a pickle."""

    __slots__ = ("column_major", "data", "kind", "shape")
    shape: tuple[int, ...]
    kind: NumberKind
    column_major: bool
    data: bytes

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, column_major, data = state if len(state) == 5 else (0, *state)
        self.fill(shape, kind, column_major, data)

    def fill(self, shape: Any, kind: Any, column_major: object, data: Any) -> None:
        """Take the parts of an array that agree with each other.

        Raises:
            pickle.UnpicklingError: they do not.
        """
        data = data.encode("latin1") if isinstance(data, str) else data  # Python 2's bytes
        fits = isinstance(shape, tuple) and all(type(side) is int and side >= 0 for side in shape)
        if not fits or not isinstance(kind, NumberKind) or not isinstance(data, (bytes, bytearray)):
            raise pickle.UnpicklingError("it holds an array without a shape, a kind of number and bytes")
        if math.prod(shape) * int(kind.code[1:]) != len(data):
            raise pickle.UnpicklingError(f"it holds an array of shape {shape} in {len(data)} bytes")
        values = {"shape": shape, "kind": kind, "column_major": bool(column_major), "data": bytes(data)}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def tensor(self) -> Tensor:
        """The numbers, as a tensor of their own."""
        if not hasattr(self, "data"):
            raise pickle.UnpicklingError("it holds an array without content")
        flat = np.frombuffer(self.data, dtype=np.dtype(self.kind.order + self.kind.code))
        array = flat.reshape(self.shape, order="F" if self.column_major else "C")
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


def _reconstruct(subtype: object, shape: object, code: object) -> NumberArray:
    """`numpy.core.multiarray._reconstruct`: an empty array, whose content follows."""
    if subtype is not NumberArray:
        raise pickle.UnpicklingError("it holds an array of a class of its own")
    return NumberArray()


def _from_buffer(data: object, kind: object, shape: object, order: object) -> NumberArray:
    """`numpy.core.numeric._frombuffer`: how pickle protocol 5 writes an array."""
    array = NumberArray()
    array.fill(shape, kind, order == "F", data)
    return array


def _scalar(kind: object, data: object) -> NumberArray:
    """`numpy.core.multiarray.scalar`: a single number."""
    array = NumberArray()
    array.fill((), kind, False, data)
    return array


def _latin1(text: object, codec: object) -> bytes:
    """`_codecs.encode`: how Python 3 writes bytes for protocol 2."""
    if not isinstance(text, str) or codec != "latin1":
        raise pickle.UnpicklingError(f"it encodes with {codec!r}")
    return text.encode("latin1")


class _Function(_StandIn):
    """A function that a pickle may call and, unlike a plain one, not write to."""

    __slots__ = ("run",)
    run: Callable[..., Any]

    def __init__(self, run: Callable[..., Any]) -> None:
        object.__setattr__(self, "run", run)

    def __call__(self, *arguments: Any) -> Any:
        return self.run(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it sets the state of a function")


NUMPY: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": NumberArray,
    "numpy.dtype": NumberKind,
    **{f"numpy.{core}.multiarray._reconstruct": _Function(_reconstruct) for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _Function(_scalar) for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _Function(_from_buffer) for core in ("core", "_core")},
}
"""What stands in a pickle for NumPy's names."""

_NO_BYTES = _Function(lambda: b"")  # how protocol 2 writes them
_ALLOWED = NUMPY | {
    "_codecs.encode": _Function(_latin1),
    "builtins.bytes": _NO_BYTES,
    "__builtin__.bytes": _NO_BYTES,
    "collections.OrderedDict": OrderedDict,
}

_OPCODES = frozenset(
    """
    PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8
    BYTEARRAY8 EMPTY_DICT EMPTY_LIST EMPTY_TUPLE DICT LIST TUPLE TUPLE1 TUPLE2 TUPLE3 SETITEM SETITEMS APPEND APPENDS
    GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD
    """.split()  # noqa: SIM905 - a list of 50 words is read more easily without quotes
)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {full}")
        return _ALLOWED[full]


def read_pickle(data: bytes) -> Any:
    """What a pickle of plain data and number arrays holds; arrays as `NumberArray`.

    Raises:
        pickle.UnpicklingError: it wants anything else, and what.
        Exception: of many kinds, for a damaged one.
    """
    for operation, argument, _ in pickletools.genops(data):
        if operation.name not in _OPCODES:
            raise pickle.UnpicklingError(f"it uses {operation.name}")
        # a memo index far above what a file can fill makes Python allocate for all below it
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(data):
            raise pickle.UnpicklingError(f"it keeps a value under number {argument}")
    return _Unpickler(io.BytesIO(data), encoding="latin1").load()
