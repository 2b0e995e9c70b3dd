"""The values of an interpreted pickle: plain data, arrays of numbers, tensors in storages, and inert stand-ins.

A class that a file names is never one of these classes. A name in a file is text; it is never imported or called.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

_NUMBERS = frozenset({"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"})


@dataclass(frozen=True)
class Named:
    """The name of a class or function in a file."""

    full: str


@dataclass(eq=False)
class PassedOver:
    """An object of a class that is not read: the name of the class, and the plain data of the object."""

    kind: str
    arguments: tuple[Any, ...] = ()
    items: dict[Any, Any] = field(default_factory=dict)
    members: list[Any] = field(default_factory=list)
    state: Any = None

    def entries(self) -> dict[str, Any]:
        """Its named attributes and items, from its arguments, its state and its items."""
        states = self.state if isinstance(self.state, tuple) else (self.state,)
        entries: dict[str, Any] = {}
        for part in (*self.arguments, *states, self.items):
            if isinstance(part, Mapping):
                entries |= {name: value for name, value in part.items() if isinstance(name, str)}
        return entries


@dataclass(eq=False)
class UnreadTensor(PassedOver):
    """A tensor of a class that is not read, such as one process's part of a tensor, or a quantised one."""

    @property
    def is_part(self) -> bool:
        """Whether it is one process's part of a tensor."""
        return self.kind.rpartition(".")[2] in ("DTensor", "ShardedTensor")


class NumberKind:
    """`numpy.dtype` in a pickle: a kind of number and its byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: object, *_: object) -> None:
        text = code.decode("ascii") if isinstance(code, bytes) else code
        text = text if isinstance(text, str) else type(code).__name__
        self.code = text.lstrip("<=|>")
        self.order = ">" if text.startswith(">") else "<"

    @property
    def is_number(self) -> bool:
        """Whether arrays of this kind are read; others (texts, records, objects) are passed over."""
        return self.code in _NUMBERS

    def set_state(self, state: Any) -> None:
        """Set the byte order from the argument of `numpy.dtype.__setstate__`."""
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("it contains an array of an unknown byte order")
        if any(part not in (None, ()) for part in state[2:5]):
            self.code = "records"
        self.order = ">" if order == ">" else "<"


class NumberArray:
    """`numpy.ndarray` in a pickle."""

    __slots__ = ("column_major", "data", "kind", "shape")
    shape: tuple[int, ...]
    kind: NumberKind
    column_major: bool
    data: bytes | bytearray

    def fill(self, shape: Any, kind: Any, column_major: object, data: Any) -> None:
        """Set the parts of an array.

        Raises:
            pickle.UnpicklingError: they contradict each other.
        """
        data = data.encode("latin1") if isinstance(data, str) else data  # Python 2's bytes
        fits = isinstance(shape, tuple) and all(type(side) is int and side >= 0 for side in shape)
        if not fits or not isinstance(kind, NumberKind):
            raise pickle.UnpicklingError("it contains an array without a shape, a kind of number and bytes")
        if kind.is_number:
            if not isinstance(data, (bytes, bytearray)):
                raise pickle.UnpicklingError("it contains an array without a shape, a kind of number and bytes")
            if math.prod(shape) * int(kind.code[1:]) != len(data):
                raise pickle.UnpicklingError(f"it contains an array of shape {shape} in {len(data)} bytes")
        self.shape, self.kind, self.column_major = shape, kind, bool(column_major)
        self.data = data if kind.is_number else b""

    @property
    def is_number(self) -> bool:
        """Whether it contains numbers."""
        return hasattr(self, "data") and self.kind.is_number

    def tensor(self) -> Tensor:
        """The numbers, as a new tensor.

        Raises:
            pickle.UnpicklingError: it contains none.
        """
        if not hasattr(self, "data"):
            raise pickle.UnpicklingError("it contains an array without content")
        if not self.kind.is_number:
            raise pickle.UnpicklingError(f"it contains an array of {self.kind.code!r}, not of numbers")
        try:
            flat = np.frombuffer(self.data, dtype=np.dtype(self.kind.order + self.kind.code))
            array = flat.reshape(self.shape, order="F" if self.column_major else "C")
            return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
        except (ValueError, TypeError, RuntimeError, OverflowError):  # more axes than NumPy has, for example
            raise pickle.UnpicklingError("it contains an array of a shape that no tensor has") from None


@dataclass(eq=False)
class Storage:
    """The bytes of one or more tensors."""

    dtype: torch.dtype | None
    """None: bytes, whose tensors state their dtypes."""
    key: str
    count: int
    """Elements, or bytes where there is no dtype."""
    data: bytearray | None = None


@dataclass(frozen=True, eq=False)
class SavedTensor:
    """A dense tensor of PyTorch in a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def tensor(self) -> Tensor:
        """The numbers, in the memory of the storage.

        Raises:
            pickle.UnpicklingError: they are outside the storage, or shape, strides and storage contradict each other.
        """
        try:
            return self._strided()
        except (ValueError, TypeError, RuntimeError, OverflowError):
            message = "it contains a tensor whose shape, strides and storage contradict each other"
            raise pickle.UnpicklingError(message) from None

    def _strided(self) -> Tensor:
        data = self.storage.data
        if data is None:
            raise pickle.UnpicklingError("it contains a tensor without content")
        flat = torch.frombuffer(data, dtype=self.dtype) if len(data) else torch.empty(0, dtype=self.dtype)
        last = self.offset + sum((side - 1) * step for side, step in zip(self.shape, self.stride, strict=True))
        if 0 not in self.shape and (last >= len(flat) or min(self.stride, default=0) < 0 or self.offset < 0):
            raise pickle.UnpicklingError(f"it contains a tensor of shape {self.shape} outside its storage")
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.dtype)
        return flat.as_strided(self.shape, self.stride, self.offset)


def is_tensor(value: object) -> bool:
    """Whether a value of a file is a tensor or an array of any kind."""
    if isinstance(value, PassedOver):  # sparse, quantised or without content
        return isinstance(value, UnreadTensor) or value.kind.startswith("torch._utils._rebuild_")
    return isinstance(value, (Tensor, SavedTensor)) or (isinstance(value, NumberArray) and value.is_number)


def is_same_tensor(one: object, other: object) -> bool:
    """Whether two entries of a file are the same numbers in the same memory."""
    if isinstance(one, SavedTensor) and isinstance(other, SavedTensor):
        same_place = one.storage is other.storage and one.offset == other.offset
        return same_place and (one.shape, one.stride, one.dtype) == (other.shape, other.stride, other.dtype)
    return one is other


def shape_of(value: object) -> tuple[int, ...]:
    """The shape of a tensor or an array; () for any other value."""
    return tuple(value.shape) if isinstance(value, (Tensor, SavedTensor, NumberArray)) else ()
