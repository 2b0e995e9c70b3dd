"""What a pickle's values become: plain data, arrays of numbers, tensors in storages, and stand-ins that do nothing.

None of these classes is a class that a file names. A name in a file is text; it is never imported and never called.
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
    """A class or function, by the name that the file gives."""

    full: str


@dataclass(eq=False)
class PassedOver:
    """An object of a class that is not read: the class's name, and the plain data that the file has of it."""

    kind: str
    arguments: tuple[Any, ...] = ()
    items: dict[Any, Any] = field(default_factory=dict)
    members: list[Any] = field(default_factory=list)
    state: Any = None

    def entries(self) -> dict[str, Any]:
        """Its attributes and items under names, wherever the file keeps them."""
        states = self.state if isinstance(self.state, tuple) else (self.state,)
        found: dict[str, Any] = {}
        for part in (*self.arguments, *states, self.items):
            if isinstance(part, Mapping):
                found |= {name: value for name, value in part.items() if isinstance(name, str)}
        return found


class NumberKind:
    """`numpy.dtype` in a pickle: a kind of number and its byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: object, *_: object) -> None:
        text = code.decode("ascii") if isinstance(code, bytes) else code
        text = text if isinstance(text, str) else repr(code)
        self.code = text.lstrip("<=|>")
        self.order = ">" if text.startswith(">") else "<"

    @property
    def is_number(self) -> bool:
        """Whether arrays of it are read; others (texts, records, objects) are passed over."""
        return self.code in _NUMBERS

    def take_state(self, state: Any) -> None:
        """Take the byte order from what `numpy.dtype.__setstate__` would be given."""
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"it holds an array of byte order {order!r}")
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
        """Take the parts of an array, which must agree with each other.

        Raises:
            pickle.UnpicklingError: they do not.
        """
        data = data.encode("latin1") if isinstance(data, str) else data  # Python 2's bytes
        fits = isinstance(shape, tuple) and all(type(side) is int and side >= 0 for side in shape)
        if not fits or not isinstance(kind, NumberKind):
            raise pickle.UnpicklingError("it holds an array without a shape, a kind of number and bytes")
        if kind.is_number:
            if not isinstance(data, (bytes, bytearray)):
                raise pickle.UnpicklingError("it holds an array without a shape, a kind of number and bytes")
            if math.prod(shape) * int(kind.code[1:]) != len(data):
                raise pickle.UnpicklingError(f"it holds an array of shape {shape} in {len(data)} bytes")
        self.shape, self.kind, self.column_major = shape, kind, bool(column_major)
        self.data = data if kind.is_number else b""

    @property
    def is_number(self) -> bool:
        """Whether it holds numbers."""
        return hasattr(self, "data") and self.kind.is_number

    def tensor(self) -> Tensor:
        """The numbers, as a tensor of their own.

        Raises:
            pickle.UnpicklingError: it holds none.
        """
        if not hasattr(self, "data"):
            raise pickle.UnpicklingError("it holds an array without content")
        if not self.kind.is_number:
            raise pickle.UnpicklingError(f"it holds an array of {self.kind.code!r}, not of numbers")
        flat = np.frombuffer(self.data, dtype=np.dtype(self.kind.order + self.kind.code))
        array = flat.reshape(self.shape, order="F" if self.column_major else "C")
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


@dataclass(eq=False)
class Storage:
    """The bytes of one or more tensors."""

    dtype: torch.dtype | None
    """None: bytes, whose tensors say their own."""
    key: str
    count: int
    """Elements, or bytes where there is no dtype."""
    data: bytearray | None = None


@dataclass(frozen=True, eq=False)
class SavedTensor:
    """A dense tensor of PyTorch's in a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def tensor(self) -> Tensor:
        """The numbers, in the storage's own memory.

        Raises:
            pickle.UnpicklingError: the storage does not hold them.
        """
        data = self.storage.data
        if data is None:
            raise pickle.UnpicklingError("it holds a tensor without content")
        flat = torch.frombuffer(data, dtype=self.dtype) if len(data) else torch.empty(0, dtype=self.dtype)
        last = self.offset + sum((side - 1) * step for side, step in zip(self.shape, self.stride, strict=True))
        if 0 not in self.shape and (last >= len(flat) or min(self.stride, default=0) < 0 or self.offset < 0):
            raise pickle.UnpicklingError(f"it holds a tensor of shape {self.shape} outside of its storage")
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.dtype)
        return flat.as_strided(self.shape, self.stride, self.offset)


def is_tensor(value: object) -> bool:
    """Whether a value of a file is a tensor or an array, of whatever kind."""
    if isinstance(value, PassedOver):  # sparse, quantised or without content
        return value.kind.startswith("torch._utils._rebuild_")
    return isinstance(value, (Tensor, SavedTensor)) or (isinstance(value, NumberArray) and value.is_number)


def is_same_tensor(one: object, other: object) -> bool:
    """Whether two entries of a file are the same numbers in the same memory."""
    if isinstance(one, SavedTensor) and isinstance(other, SavedTensor):
        same = one.storage is other.storage and one.offset == other.offset
        return same and (one.shape, one.stride, one.dtype) == (other.shape, other.stride, other.dtype)
    return one is other


def shape_of(value: object) -> tuple[int, ...]:
    """The shape of a tensor or an array; () for one of another kind."""
    return tuple(value.shape) if isinstance(value, (Tensor, SavedTensor, NumberArray)) else ()
