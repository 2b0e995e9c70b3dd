"""No file is ever unpickled with code: attacks are refused with their reason, and arrays are read all the same."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from resim.errors import UserError
from resim.exchange.files import read_contents, tensors_in
from resim.exchange.pickles import NumberArray, read_pickle
from resim.exchange.weights import read_weights


def refused(path: Path) -> str:
    """What is told about a file: one line that names it."""
    with pytest.raises(UserError) as caught:
        read_weights(path)
    told = str(caught.value)
    assert told.startswith(f"{path}: ")
    assert "\n" not in told
    return told


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
@pytest.mark.parametrize("place", ["entry", "array", "beside"])
def test_code_in_a_file_is_not_run(tmp_path: Path, form: str, attack: str, place: str) -> None:
    path, victim = tmp_path / "weights.pkl", tmp_path / "victim"
    kind, name = ATTACKS[attack]
    evil: Any = kind(victim)
    if place == "array":
        array = np.empty(1, dtype=object)
        array[0] = evil
        evil = array
    content = {"model": {"stem.conv1.weight": np.zeros((64, 3, 7, 7), np.float32)}, "__author__": "someone"}
    if place == "beside":
        content["optimizer"] = evil
    else:
        content["model"]["stem.conv1.norm.weight"] = evil
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps(content, protocol=int(form[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "torch")
    told = refused(path)
    assert "refused: it asks for " in told or "refused: it holds an array of " in told, told
    if place == "entry":
        assert name in told
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
WANTS = "refused: it "
MANGLED = {
    "attribute of a function": (opcodes(RECONSTRUCT, b"}", text("__doc__"), text("x"), b"sb"), "state of a function"),
    "slot of a function": (opcodes(RECONSTRUCT, b"N}", text("run"), text("x"), b"s\x86b"), "state of a function"),
    "attribute of a class": (opcodes(NDARRAY, b"}", text("tensor"), text("x"), b"sb"), "no file of weights"),
    "new object": (opcodes(NDARRAY, b")\x81"), WANTS + "uses NEWOBJ"),
    "instance": (b"(ios\nsystem\n.", WANTS + "uses INST"),
    "persistent id": (opcodes(text("key"), b"Q"), WANTS + "uses BINPERSID"),
    "extension": (opcodes(b"\x82\x01"), WANTS + "uses EXT1"),
    "global by name": (opcodes(b"cos\nsystem\n"), WANTS + "asks for os.system"),
    "global by stack": (opcodes(text("os"), text("system"), b"\x93"), WANTS + "asks for os.system"),
    "numpy's loader": (opcodes(text("numpy"), text("load"), b"\x93"), WANTS + "asks for numpy.load"),
    "dotted name": (opcodes(text("numpy"), text("ndarray.tofile"), b"\x93"), WANTS + "asks for numpy.ndarray.tofile"),
    "memo of 4 billion": (
        opcodes(b"Nr" + struct.pack("<I", 2**32 - 1)),
        WANTS + "keeps a value under number 4294967295",
    ),
    "class of its own": (
        opcodes(RECONSTRUCT, text("x"), b")", text("b"), b"\x87R"),
        WANTS + "holds an array of a class",
    ),
}


@pytest.mark.parametrize("fault", list(MANGLED))
def test_a_pickle_that_wants_more_than_data_is_refused_with_its_reason(tmp_path: Path, fault: str) -> None:
    data, told = MANGLED[fault]
    (tmp_path / "weights.pkl").write_bytes(data)
    assert told in refused(tmp_path / "weights.pkl")
    array = read_pickle(pickle.dumps(np.arange(3)))  # and nothing stays changed
    assert array.tensor().tolist() == [0, 1, 2]


@pytest.mark.parametrize("sides", [(1 << 20, 1 << 20), (-1,), (3.0,), (1 << 62, 4), "shape"])
def test_an_array_that_claims_more_than_it_holds_is_refused(sides: Any) -> None:
    array = NumberArray()
    kind = read_pickle(pickle.dumps(np.dtype("f4")))
    with pytest.raises(pickle.UnpicklingError, match="it holds an array"):
        array.fill(sides, kind, False, bytes(8))


def test_records_and_texts_are_no_weights() -> None:
    for array in (
        np.zeros(2, dtype=[("a", "f4")]),
        np.array(["a"]),
        np.zeros(2, dtype="c8"),
        np.zeros(1, dtype="M8[s]"),
    ):
        with pytest.raises(pickle.UnpicklingError, match="it holds an array of"):
            read_pickle(pickle.dumps(array))


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


# -- files that claim what they do not hold


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
    assert "is compressed, as torch.save does not do" in refused(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_sparse_and_quantised_tensors_are_told(tmp_path: Path) -> None:
    quantised = torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)
    for number, value in enumerate((torch.eye(3).to_sparse(), quantised, torch.zeros(3, device="meta"))):
        path = tmp_path / f"{number}.pth"
        torch.save({"state_dict": {"w": value}}, path)
        assert "w: is sparse, quantised or without content; dense weights are read" in refused(path)
