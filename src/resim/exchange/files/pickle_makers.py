"""The objects that a pickle may make: NumPy's arrays, PyTorch's tensors, Python's containers.

A maker is a function of this package that receives the plain data in the file, in place of the function that the file
names. Any other object of a pickle becomes a `PassedOver`.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch

from resim.exchange.files.pickle_values import (
    Named,
    NumberArray,
    NumberKind,
    PassedOver,
    SavedTensor,
    Storage,
    UnreadTensor,
)

Maker = Callable[..., Any]

DTYPES: dict[str, torch.dtype] = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
    "QInt8Storage": torch.int8, "QUInt8Storage": torch.uint8, "QInt32Storage": torch.int32,  # the integers in memory
}  # fmt: skip
"""The dtypes of PyTorch's typed storages."""


def scalar_key(value: object) -> object:
    """A key of a dictionary or a member of a set: plain values unchanged, others by their type."""
    if value is None or isinstance(value, (str, bytes, int, float, bool)):
        return value
    if isinstance(value, tuple) and all(part is None or isinstance(part, (str, int, float)) for part in value):
        return value
    return PassedOver(type(value).__name__)


def container(kind: Callable[..., Any]) -> Maker:
    """A maker of a container of Python from a list or a mapping in the file."""

    def make(*arguments: Any) -> Any:
        first = arguments[0] if arguments else ()
        if len(arguments) > 1 or not isinstance(first, (list, tuple, dict)):
            return PassedOver("a container", arguments)
        if kind in (dict, OrderedDict):
            pairs = first.items() if isinstance(first, Mapping) else first
            return kind((scalar_key(name), value) for name, value in pairs)
        return kind(map(scalar_key, first)) if kind in (set, frozenset) else kind(first)

    return make


def _default_dict(*arguments: Any) -> dict[Any, Any]:
    """`collections.defaultdict`, as a plain dictionary; its items are set later."""
    return dict(arguments[1]) if len(arguments) > 1 and isinstance(arguments[1], Mapping) else {}


def _reconstruct(subtype: object, shape: object, code: object) -> NumberArray | PassedOver:
    """`numpy.core.multiarray._reconstruct`: an empty array, whose content is set later, or one of another class."""
    if not isinstance(subtype, Named):
        raise pickle.UnpicklingError("it contains an array of a subclass")
    return NumberArray() if subtype.full in ("numpy.ndarray", "numpy.memmap") else PassedOver(subtype.full)


def _from_buffer(data: object, kind: object, shape: object, order: object, *_: object) -> NumberArray:
    """`numpy.core.numeric._frombuffer`: an array in pickle protocol 5."""
    array = NumberArray()
    array.fill(shape, kind, order == "F", data)
    return array


def _scalar(kind: object, data: object = b"") -> NumberArray:
    """`numpy.core.multiarray.scalar`: a single number."""
    array = NumberArray()
    array.fill((), kind, False, data)
    return array


def _latin1(text: object, codec: object) -> bytes:
    """`_codecs.encode`: bytes that Python 3 writes in protocol 2."""
    if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it encodes with {codec if isinstance(codec, str) else type(codec)}"[:80])
    return text.encode("latin1")


def _bytes(*arguments: Any) -> bytes | bytearray:
    first = arguments[0] if arguments else b""
    if isinstance(first, str):  # bytearray, under protocol 2
        first = first.encode("latin1")
    if not isinstance(first, (bytes, bytearray)):
        raise pickle.UnpicklingError("it makes bytes of another object")
    return bytearray(first)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: object) -> SavedTensor:
    """`torch._utils._rebuild_tensor` and `_rebuild_tensor_v2`."""
    dtype = storage.dtype if isinstance(storage, Storage) else None
    return _saved(storage, offset, shape, stride, dtype)


def _tensor_v3(
    storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: object
) -> Any:
    """`torch._utils._rebuild_tensor_v3`: a tensor in a storage of bytes."""
    named = getattr(torch, dtype.full.rpartition(".")[2], None) if isinstance(dtype, Named) else None
    return _saved(storage, offset, shape, stride, named if isinstance(named, torch.dtype) else None)


def _saved(storage: Any, offset: Any, shape: Any, stride: Any, dtype: torch.dtype | None) -> SavedTensor:
    are_integers = all(
        isinstance(sides, tuple) and all(type(side) is int for side in sides) for sides in (shape, stride)
    )
    if not isinstance(storage, Storage) or dtype is None or not are_integers or type(offset) is not int:
        raise pickle.UnpicklingError("it contains a tensor without a storage, a shape and a kind of number")
    return SavedTensor(storage, offset, shape, stride, dtype)


def _typed(maker: Any, kind: Any, arguments: Any, *_: object) -> Any:
    """`torch._tensor._rebuild_from_type_v2`: a tensor with attributes, or of a subclass."""
    known = MAKERS.get(maker.full) if isinstance(maker, Named) else None
    if known is not None and isinstance(arguments, tuple):
        return known(*arguments)
    return UnreadTensor(kind.full if isinstance(kind, Named) else "a tensor of another class")


def _first(value: Any, *_: object) -> Any:
    """Of a parameter its tensor, of a typed list the list."""
    return value


MAKERS: dict[str, Maker] = {
    "_codecs.encode": _latin1,
    **{f"{core}.{name}": _bytes for core in ("builtins", "__builtin__") for name in ("bytes", "bytearray")},
    **{
        f"{core}.{kind.__name__}": container(kind)
        for core in ("builtins", "__builtin__")
        for kind in (list, tuple, dict, set, frozenset)
    },
    "collections.OrderedDict": container(OrderedDict),
    "collections.Counter": container(dict),
    "collections.defaultdict": _default_dict,
    "numpy.dtype": NumberKind,
    **{f"numpy.{core}.multiarray._reconstruct": _reconstruct for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},
    "torch.Size": container(tuple),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    **{f"{core}._rebuild_from_type": _typed for core in ("torch.tensor", "torch._tensor")},
    "torch._tensor._rebuild_from_type_v2": _typed,
    **{  # tensors of accelerators that PyTorch reaches through plug-ins, such as TPUs: on the CPU, or as arrays
        f"torch._utils._rebuild_{kind}": _first
        for kind in ("device_tensor_from_numpy", "device_tensor_from_cpu_tensor", "xla_tensor")
    },
    **{
        f"torch.jit._pickle.{name}": _first
        for name in ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist", "restore_type_tag")
    },
}
"""The makers, by the names in pickles."""
