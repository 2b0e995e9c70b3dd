"""No code in a file is run: attacks are refused with their reason, and arrays are read."""

from __future__ import annotations

import argparse
import collections
import copyreg
import datetime
import decimal
import enum
import functools
import io
import os
import pickle
import re
import struct
import sys
import uuid
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from resim.errors import UserError
from resim.exchange.files.contents import read_contents, tensors_in
from resim.exchange.files.pickle_values import NumberArray, NumberKind, SavedTensor, Storage
from resim.exchange.files.pickles import read_pickle
from resim.exchange.weights import read_weights


def refused(path: Path) -> str:
    """The message about a file: one line that names it."""
    with pytest.raises(UserError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


# -- attacks


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.victim}",)


class Evaluate(Command):
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"__import__('pathlib').Path({str(self.victim)!r}).touch()",)


class Nested(Command):
    """Hides the command in a pickle within a tensor's storage, which torch's own loader of storages reads."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (pickle.dumps(Command(self.victim)),)


ATTACKS = {"os": (Command, "posix.system"), "eval": (Evaluate, "eval"), "nested": (Nested, "loads")}


@pytest.mark.parametrize("form", ["pickle-2", "pickle-4", "pickle-5", "torch", "torch-legacy"])
@pytest.mark.parametrize("attack", list(ATTACKS))
@pytest.mark.parametrize("place", ["entry", "array", "extra"])
def test_code_in_a_file_is_not_run(tmp_path: Path, form: str, attack: str, place: str) -> None:
    path, victim = tmp_path / "weights.pkl", tmp_path / "victim"
    kind, name = ATTACKS[attack]
    evil: Any = kind(victim)
    if place == "array":
        array = np.empty(1, dtype=object)
        array[0] = evil
        evil = array
    content = {"model": {"stem.conv1.weight": np.zeros((64, 3, 7, 7), np.float32)}, "__author__": "someone"}
    if place == "extra":
        content["optimizer"] = evil
    else:
        content["model"]["stem.conv1.norm.weight"] = evil
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps(content, protocol=int(form[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "torch")
    message = refused(path)
    assert "refused: it imports " in message or "refused: it contains an array of " in message, message
    if place == "entry":
        assert name in message
    assert not victim.exists()
    pickle.loads(path.read_bytes()) if form.startswith("pickle") else torch.load(path, weights_only=False)
    assert victim.exists()  # the attack is a real one


def opcodes(*parts: bytes) -> bytes:
    """A pickle, opcode by opcode."""
    return b"\x80\x04" + b"".join(parts) + b"."


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


RECONSTRUCT = text("numpy.core.multiarray") + text("_reconstruct") + b"\x93"
NDARRAY = text("numpy") + text("ndarray") + b"\x93"
REFUSED = "refused: it "
MANGLED = {
    "attribute of a function": (opcodes(RECONSTRUCT, b"}", text("__doc__"), text("x"), b"sb"), "state of a function"),
    "slot of a function": (opcodes(RECONSTRUCT, b"N}", text("run"), text("x"), b"s\x86b"), "state of a function"),
    "attribute of a class": (opcodes(NDARRAY, b"}", text("tensor"), text("x"), b"sb"), "state of a function or class"),
    "new object": (opcodes(NDARRAY, b")\x81"), "contains no named weights (a numpy.ndarray)"),
    "instance": (b"(ios\nsystem\n.", REFUSED + "imports os.system"),
    "persistent id": (opcodes(text("key"), b"Q"), "contains no named weights (a persistent id)"),
    "extension": (opcodes(b"\x82\x01"), "contains no named weights (a copyreg extension 1)"),
    "global by name": (opcodes(b"cos\nsystem\n"), REFUSED + "imports os.system"),
    "global by stack": (opcodes(text("os"), text("system"), b"\x93"), REFUSED + "imports os.system"),
    "numpy's loader": (opcodes(text("numpy"), text("load"), b"\x93"), "contains no named weights (a numpy.load)"),
    "dotted name": (opcodes(text("numpy"), text("ndarray.tofile"), b"\x93"), "(a numpy.ndarray.tofile)"),
    "memo of 4 billion": (opcodes(b"Nr" + struct.pack("<I", 2**32 - 1)), "contains no named weights (a NoneType)"),
    "buffer outside": (opcodes(b"\x97"), REFUSED + "keeps its arrays outside the file"),
    "protocol 9": (b"\x80\x09N.", REFUSED + "is a pickle of protocol 9"),
    "no end": (opcodes(b"N")[:-1], "damaged, or no file of weights"),
    "empty stack": (opcodes(b"R"), "damaged, or no file of weights"),
    "items of a text": (opcodes(text("a"), text("b"), text("c"), b"s"), REFUSED + "sets items of a str"),
    "append to a number": (opcodes(b"K\x01K\x02a"), REFUSED + "appends to a int"),
    "class of its own": (
        opcodes(RECONSTRUCT, text("x"), b")", text("b"), b"\x87R"),
        REFUSED + "contains an array of a subclass",
    ),
}


@pytest.mark.parametrize("fault", list(MANGLED))
def test_a_pickle_with_more_than_data_is_refused_with_its_reason(tmp_path: Path, fault: str) -> None:
    data, message = MANGLED[fault]
    (tmp_path / "weights.pkl").write_bytes(data)
    assert message in refused(tmp_path / "weights.pkl")
    array = read_pickle(pickle.dumps(np.arange(3)))  # and nothing stays changed
    assert array.tensor().tolist() == [0, 1, 2]


@pytest.mark.parametrize("sides", [(1 << 20, 1 << 20), (-1,), (3.0,), (1 << 62, 4), "shape"])
def test_an_array_that_claims_more_than_it_contains_is_refused(sides: Any) -> None:
    array = NumberArray()
    kind = read_pickle(pickle.dumps(np.dtype("f4")))
    with pytest.raises(pickle.UnpicklingError, match="it contains an array"):
        array.fill(sides, kind, False, bytes(8))


def test_records_and_texts_are_no_weights() -> None:
    for array in (
        np.zeros(2, dtype=[("a", "f4")]),
        np.array(["a"]),
        np.zeros(2, dtype="c8"),
        np.zeros(1, dtype="M8[s]"),
    ):
        with pytest.raises(pickle.UnpicklingError, match="it contains an array of"):
            read_pickle(pickle.dumps(array)).tensor()


# -- stand-ins: nothing that a file names is imported or called

EVIL = text("trap") + text("Evil") + b"\x93"
MAKE = text("trap") + text("make") + b"\x93"
CALLED = MAKE + b")R"
CONSTRUCTS = {
    "GLOBAL": b"ctrap\nEvil\n",
    "STACK_GLOBAL": EVIL,
    "REDUCE of a function": MAKE + b"(K\x01K\x02tR",
    "REDUCE of a class": EVIL + b")R",
    "REDUCE of what a call gives": CALLED + b")R",
    "INST": b"(K\x01itrap\nEvil\n",
    "OBJ": b"(" + EVIL + b"K\x01o",
    "NEWOBJ": EVIL + b")\x81",
    "NEWOBJ_EX": EVIL + b")}" + text("key") + text("value") + b"s\x92",
    "NEWOBJ of a tuple's subclass": EVIL + b"(K\x01K\x02t\x81",
    "BUILD with attributes": EVIL + b")\x81}" + text("run") + MAKE + b"sb",
    "BUILD with slots": EVIL + b")\x81N}" + text("run") + MAKE + b"s\x86b",
    "BUILD with any state": EVIL + b")\x81" + CALLED + b"b",
    "EXT1": b"\x82\xf0",
    "EXT2": b"\x83\xf0\x00",
    "EXT4": b"\x84\xf0\x00\x00\x00",
    "PERSID": b"Pkey\n",
    "BINPERSID": EVIL + b"Q",
    "APPENDS to an object": EVIL + b")\x81(K\x01K\x02e",
    "SETITEMS of an object": EVIL + b")\x81(" + text("a") + CALLED + b"u",
    "ADDITEMS of a set": b"\x8f(" + CALLED + b"\x90",
    "FROZENSET": b"(" + CALLED + b"\x91",
    "DICT with a call for a key": b"(" + CALLED + b"K\x01d",
    "getattr": text("builtins") + text("getattr") + b"\x93" + EVIL + text("make") + b"\x86R)R",
    "attrgetter": text("operator") + text("attrgetter") + b"\x93" + text("make") + b"\x85R" + EVIL + b"\x85R",
    "copyreg": text("copyreg") + text("_reconstructor") + b"\x93" + EVIL + EVIL + b"N\x87R",
    "copyreg.__newobj__": text("copyreg") + text("__newobj__") + b"\x93" + EVIL + b"\x85R",
    "partial": text("functools") + text("partial") + b"\x93" + MAKE + b"\x85R)R",
    "a factory of defaults": text("collections") + text("defaultdict") + b"\x93" + MAKE + b"\x85R",
    "torch's own loader": text("torch") + text("load") + b"\x93" + text("victim") + b"\x85R",
    "numpy's array of a class": text("numpy") + text("dtype") + b"\x93" + EVIL + b"\x85R",
    "a tensor's class": text("torch._tensor") + text("_rebuild_from_type_v2") + b"\x93(" + MAKE + EVIL + b")NtR",
}
TRAP = "import pathlib\npathlib.Path({victim!r}).touch()\ndef make(*a, **k): raise SystemExit(99)\nclass Evil: pass\n"


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module `trap` that leaves a file when it is imported, and an extension code 240 for its class."""
    victim = tmp_path / "victim"
    (tmp_path / "trap.py").write_text(TRAP.format(victim=str(victim)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(copyreg._inverted_registry, 240, ("trap", "Evil"))  # type: ignore[attr-defined]
    monkeypatch.setitem(copyreg._extension_cache, 240, os.system)  # type: ignore[attr-defined]
    return victim


@pytest.mark.parametrize("form", ["pickle", "torch"])
@pytest.mark.parametrize("construct", list(CONSTRUCTS))
def test_no_construct_imports_or_calls_anything(trap: Path, tmp_path: Path, construct: str, form: str) -> None:
    inner = CONSTRUCTS[construct]
    array = np.arange(3, dtype=np.float32)
    weights = pickle.dumps(array, protocol=4)[2:-1]  # without the protocol and the end
    data = opcodes(b"}(", text("w"), re.sub(rb"^\x95.{8}", b"", weights, flags=re.DOTALL), text("more"), inner, b"u")
    path = tmp_path / "w.pth"
    if form == "pickle":
        path.write_bytes(data)
    else:
        if "PERSID" in construct:
            pytest.skip(
                "verified elsewhere, as a persistent id is a storage there: test_a_persistent_id_that_is_no_storage"
            )
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("w/data.pkl", data)
    contents = read_contents(path)
    tensors, others = tensors_in(contents, contents.data, {"w"})
    assert tensors["w"].tolist() == [0, 1, 2]
    assert others == ["more"]
    assert not trap.exists()
    assert "trap" not in sys.modules
    if construct not in ("GLOBAL", "STACK_GLOBAL", "a factory of defaults", "numpy's array of a class"):
        assert contents.passed_over != ()  # and what was passed over is named


def test_a_persistent_id_that_is_no_storage(trap: Path, tmp_path: Path) -> None:
    for inner in (EVIL + b"Q", b"Pkey\n", b"(" + text("storage") + EVIL + text("0") + text("cpu") + b"K\x01tQ"):
        with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
            archive.writestr("w/data.pkl", opcodes(b"}", text("w"), inner, b"s"))
        message = refused(tmp_path / "w.pth")
        assert "persistent id other than a storage's" in message or "Evil, whose dtype is not known" in message
    assert not trap.exists()


def test_a_small_file_with_many_references_is_refused(tmp_path: Path) -> None:
    """Each dictionary contains the one before twice: 2**60 paths, 60 dictionaries."""
    layers = b""
    for number in range(60):
        before = b"j" + struct.pack("<I", number)  # what is kept under this number
        layers += b"r" + struct.pack("<I", number) + b"0}(" + text("a") + before + text("b") + before + b"u"
    (tmp_path / "w.pkl").write_bytes(opcodes(b"}", layers))
    assert "contains no ResNet" in refused(tmp_path / "w.pkl")


class Settings:
    def __init__(self) -> None:
        self.lr = 0.1


class Colour(enum.Enum):
    RED = 1


Point = collections.namedtuple("Point", "x y")


class Named(dict[str, Any]):
    """As EasyDict, ConfigDict and AttributeDict are."""


def harmless() -> dict[str, Any]:
    return {
        "namespace": argparse.Namespace(lr=0.1, model="resnet50"),
        "defaultdict": collections.defaultdict(list, a=[1]),
        "counter": collections.Counter("abca"),
        "datetime": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
        "timedelta": datetime.timedelta(days=1),
        "path": Path("/a/b"),
        "enum": Colour.RED,
        "random state": np.random.get_state(),  # noqa: NPY002 - as people save it
        "generator": np.random.default_rng(0),
        "scalars": [np.float32(1), np.int64(2), np.bool_(True), np.str_("a")],
        "objects": np.array([{"a": 1}, None], dtype=object),
        "records": np.zeros(2, dtype=[("a", "f4")]),
        "dates": np.zeros(2, dtype="M8[s]"),
        "object": Settings(),
        "dict of a class": Named(a=1),
        "point": Point(1, 2),
        "class": Settings,
        "function": os.path.join,
        "partial": functools.partial(sorted, reverse=True),
        "set": {1, 2},
        "frozenset": frozenset("ab"),
        "complex": 1 + 2j,
        "range": range(3),
        "decimal": decimal.Decimal("1.5"),
        "uuid": uuid.UUID(int=3),
        "bytes": b"abc",
        "bytearray": bytearray(b"abc"),
        "device": torch.device("cpu"),
        "size": torch.Size([1, 2]),
        "dtype": torch.float16,
        "numbers under numbers": {1: {2: 3}},
        "tuple keys": {(1, "a"): 2, (1, (2, 3)): 4},
    }


@pytest.mark.parametrize("form", ["pickle-0", "pickle-2", "pickle-4", "pickle-5", "torch-2", "torch-4", "legacy"])
def test_harmless_objects_do_not_prevent_reading(tmp_path: Path, form: str) -> None:
    path = tmp_path / "w.pth"
    weight = torch.arange(6.0).reshape(2, 3)
    content: dict[str, Any] = {"state_dict": {"w": weight}, **harmless()}
    if form.startswith("pickle"):
        content["state_dict"] = {"w": weight.numpy()}
        path.write_bytes(pickle.dumps(content, protocol=int(form[-1])))
    elif form == "legacy":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(content, path, pickle_protocol=int(form[-1]))
    contents = read_contents(path)
    tensors, _ = tensors_in(contents, contents.data["state_dict"])
    assert torch.equal(tensors["w"], weight)
    assert "argparse.Namespace" in contents.passed_over
    assert contents.data["namespace"].entries() == {"lr": 0.1, "model": "resnet50"}
    state, _ = tensors_in(contents, {"keys": contents.data["random state"][1]})
    assert state["keys"].dtype is torch.uint32
    assert state["keys"].tolist() == content["random state"][1].tolist()


# -- arrays


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8", "<i8", ">i4", "|u1", "|i1", "|b1"])
def test_arrays_are_read_as_numpy_reads_them(protocol: int, dtype: str) -> None:
    array = np.random.default_rng(0).uniform(0, 100, (3, 4, 5)).astype(dtype)
    for form in (array, np.asfortranarray(array), array[::2, 1], array[0, 0, 0], array[:0], np.array(array[1, 2, 3])):
        data = pickle.dumps({"name": form, "order": collections.OrderedDict(a=1)}, protocol=protocol)
        read = read_pickle(data)["name"].tensor()
        assert np.array_equal(read.numpy(), form)
        assert read.dtype == torch.from_numpy(np.zeros(1, dtype=np.dtype(dtype).newbyteorder("="))).dtype


PYTHON_2 = (  # pickle.dumps({'w': numpy.array([1.5, -2], 'f4')}, 2) under Python 2
    b"\x80\x02}q\x00U\x01wq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85q\x04U\x01bq\x05"
    b"\x87q\x06Rq\x07(K\x01K\x02\x85q\x08cnumpy\ndtype\nq\tU\x02f4q\nK\x00K\x01\x87q\x0bRq\x0c(K\x03U\x01<q\rNNNJ\xff\xff\xff"
    b"\xffJ\xff\xff\xff\xffK\x00tq\x0eb\x89U\x08\x00\x00\xc0?\x00\x00\x00\xc0q\x0ftq\x10bs."
)


def test_pickles_of_python_2_are_read() -> None:
    assert read_pickle(PYTHON_2)["w"].tensor().tolist() == [1.5, -2]


@pytest.mark.parametrize("legacy", [False, True])
def test_arrays_in_a_file_of_torch_are_read(tmp_path: Path, legacy: bool) -> None:
    array = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    torch.save({"model": {"w": array}}, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(pickle.UnpicklingError):  # which PyTorch alone refuses
        torch.load(tmp_path / "w.pth", weights_only=True)
    contents = read_contents(tmp_path / "w.pth")
    tensors, others = tensors_in(contents, contents.data["model"])
    assert np.array_equal(tensors["w"].numpy(), array)
    assert others == []
    with pytest.raises(pickle.UnpicklingError):  # and which it still refuses everybody else
        torch.load(tmp_path / "w.pth", weights_only=True)


# -- files that claim more than they contain


def test_a_header_of_3_gigabytes_in_a_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 3 << 30) + b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}')
    assert "damaged, or no safetensors file" in refused(path)


def test_a_safetensors_file_whose_tensors_lie_outside_it(tmp_path: Path) -> None:
    header = b'{"w":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4000000]}}'
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    assert "damaged, or no safetensors file" in refused(path)


def test_a_tensor_that_repeats_one_number_a_million_times_a_million(tmp_path: Path) -> None:
    huge = torch.zeros(1).expand(1_000_000, 1_000_000)
    torch.save({"state_dict": {"layer1.0.conv1.weight": huge}}, tmp_path / "w.pth")
    assert "layer1.0.conv1.weight: claims (1000000, 1000000) in a file of " in refused(tmp_path / "w.pth")


def test_a_compressed_archive_is_not_unpacked(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"state_dict": {"w": torch.zeros(100_000)}}, buffer)
    with zipfile.ZipFile(buffer) as plain, zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in plain.namelist():
            packed.writestr(entry, plain.read(entry))
    assert "is compressed, unlike files of torch.save" in refused(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_sparse_and_quantised_tensors_are_refused(tmp_path: Path) -> None:
    quantised = torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)
    for number, value in enumerate((torch.eye(3).to_sparse(), quantised, torch.zeros(3, device="meta"))):
        path = tmp_path / f"{number}.pth"
        torch.save({"state_dict": {"w": value}}, path)
        assert "w: is sparse, quantised or without content: save dense weights" in refused(path)


def test_a_type_that_pytorch_cannot_convert_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.zeros(4, dtype=torch.float4_e2m1fn_x2)}}, tmp_path / "w.pth")
    assert "w: cannot be read as torch.float4_e2m1fn_x2: save it as float32" in refused(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("shape", "stride", "num_bytes"),
    [((2,), (1, 1), 8), ((2, 1), (1,), 8), ((0, 2**70), (1, 1), 8), ((2**40, 2**40), (0, 0), 8), ((1,), (1,), 7),
     ((-2,), (1,), 8)],
)  # fmt: skip
def test_a_shape_that_contradicts_its_strides_or_storage(
    shape: tuple[int, ...], stride: tuple[int, ...], num_bytes: int
) -> None:
    storage = Storage(torch.float32, "0", 2, bytearray(num_bytes))
    with pytest.raises(pickle.UnpicklingError, match="shape, strides and storage contradict each other"):
        SavedTensor(storage, 0, shape, stride, torch.float32).tensor()


def test_an_array_of_more_axes_than_numpy_has_is_refused() -> None:
    array, kind = NumberArray(), NumberKind("f4")
    array.fill((1,) * 100, kind, False, bytes(4))
    with pytest.raises(pickle.UnpicklingError, match="an array of a shape that no tensor has"):
        array.tensor()
