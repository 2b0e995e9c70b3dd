"""Limits of a pickle that are verified before it is read, and checkpoints that are refused in our own words."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from resim.cli.main import main
from resim.detection.checkpoint import load_detector
from resim.errors import UserError
from resim.exchange.files.contents import read_contents
from resim.exchange.files.pickles import read_pickle
from resim.exchange.state_files import read_state
from resim.runs.checkpoints import load_checkpoint, save_checkpoint
from resim.runs.pickle_limits import MAX_DEPTH, check_pickle

MEGABYTE = 1_000_000
DEEP = {
    "one in one": b")" + b"\x85" * MEGABYTE,
    "marks": b"(" * (MEGABYTE // 2) + b"t" * (MEGABYTE // 2),
    "pairs": b"N" + b"N\x86" * (MEGABYTE // 2),
    "triples": b"N" + b"NN\x87" * (MEGABYTE // 3),
    "through the memo": b")" + b"\x85q\x00h\x00" * (MEGABYTE // 5),
    "a key": b"})" + b"\x85" * MEGABYTE + b"Ns",
    "a member": b"\x8f()" + b"\x85" * MEGABYTE + b"\x90",
}
REPEATED = {
    "twice the one before": b")" + b"2\x86" * 60,
    "by the memo": b")" + b"q\x00h\x00\x86" * 60,
    "by MEMOIZE": b")\x94" + b"".join(b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86\x94" for n in range(60)),
    "a key": b"})" + b"2\x86" * 60 + b"Ns",
}


@pytest.mark.parametrize("opcodes", list(DEEP.values()), ids=list(DEEP))
def test_tuples_nested_deeper_than_any_checkpoint_are_refused(opcodes: bytes) -> None:
    with pytest.raises(pickle.UnpicklingError, match=f"nests tuples more than {MAX_DEPTH} levels deep"):
        check_pickle(b"\x80\x04" + opcodes + b".")


@pytest.mark.parametrize("opcodes", list(REPEATED.values()), ids=list(REPEATED))
def test_a_tuple_with_2_to_the_60_paths_is_refused(opcodes: bytes) -> None:
    with pytest.raises(pickle.UnpicklingError, match="a tuple of more than 10000000 values"):
        check_pickle(b"\x80\x04" + opcodes + b".")


def test_the_limit_is_at_its_value() -> None:
    check_pickle(b"\x80\x04N" + b"\x85" * MAX_DEPTH + b".")
    with pytest.raises(pickle.UnpicklingError):
        check_pickle(b"\x80\x04N" + b"\x85" * (MAX_DEPTH + 1) + b".")


def test_a_pickle_of_20_million_opcodes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resim.runs.pickle_limits.MAX_OPCODES", 1000)
    check_pickle(b"}" + b"N0" * 400 + b".")
    with pytest.raises(pickle.UnpicklingError, match="more than 1000 opcodes"):
        check_pickle(b"}" + b"N0" * 500 + b".")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_python_writes_passes(protocol: int) -> None:
    shared = {"a": (1, (2.5, None))}
    value: dict[Any, Any] = {
        "text": "é", "bytes": b"a\nb", "long": 10**30, "float": 0.1, "set": {1, 2}, "list": list(range(3000)),
        "frozen": frozenset({"a"}), "ordered": OrderedDict(a=shared, b=shared), "array": np.arange(6.0).reshape(2, 3),
        "random state": np.random.default_rng(0).bit_generator.state, "bytearray": bytearray(b"abc"), "complex": 1j,
        "class": OrderedDict, "bools": (True, False, None), "long text": "x" * 300, (1, (2, 3)): "key",
        "dtype": np.dtype("f4"),
    }  # fmt: skip
    data = pickle.dumps(value, protocol=protocol)
    check_pickle(data)
    check_pickle(b"before" + data + b"after", 6)
    read_pickle(data)


@pytest.mark.parametrize(
    "data", [b"", b"\x80", b"N", b"\x85.", b"t.", b"h\x00.", b"0.", b"X\xff\xff\xff\xff.", b"I1", b"\xfe."]
)
def test_a_cut_or_contradictory_pickle_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="cut, or contradict each other"):
        check_pickle(data)


def test_a_name_of_more_than_1000_letters_is_refused() -> None:
    check_pickle(b"\x80\x02c" + b"a" * 997 + b"\nb\n)R.")
    for opcodes in (b"c" + b"a" * 998 + b"\nb\n)R.", b"(i" + b"a" * 998 + b"\nb\n."):
        with pytest.raises(pickle.UnpicklingError, match="names a class by more than 1000 letters"):
            check_pickle(b"\x80\x02" + opcodes)


CALLS = {"REDUCE": b"X\x01\x00\x00\x00a)R.", "NEWOBJ": b"})\x81.", "NEWOBJ_EX": b"K\x01)}\x92.", "OBJ": b"(K\x01o."}


@pytest.mark.parametrize("call", list(CALLS))
def test_a_call_of_a_value_is_refused_in_a_plain_pickle(call: str) -> None:
    check_pickle(b"\x80\x04" + CALLS[call])
    with pytest.raises(pickle.UnpicklingError, match="it calls a value that is no class or function"):
        check_pickle(b"\x80\x04" + CALLS[call], plain=True)
    named = pickle.dumps([OrderedDict(a=np.arange(3)), np.dtype("f4"), Path("a")], protocol=4)
    check_pickle(named, plain=True)


# -- every reader of a file of torch.save


def torch_file(path: Path, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", data)
        archive.writestr("w/byteorder", "little")
        archive.writestr("w/version", "3\n")
    return path


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch victim",)


ATTACKS = {
    "os.system": (pickle.dumps({"resim": Evil()}, protocol=2), "system"),
    "eval": (b"\x80\x02}X\x05\x00\x00\x00resimcbuiltins\neval\nX\x01\x00\x00\x001\x85Rs.", "eval"),
    "a class of somebody": (b"\x80\x02}X\x05\x00\x00\x00resimcsome.where\nThing\n)\x81s.", "some.where.Thing"),
    "nested": (b"\x80\x02}X\x05\x00\x00\x00resim)" + b"\x85" * MEGABYTE + b"s.", "100 levels deep"),
    "repeated": (b"\x80\x02}X\x05\x00\x00\x00resim)" + b"2\x86" * 60 + b"s.", "10000000 values"),
    "a long name": (b"\x80\x02}X\x05\x00\x00\x00resimc" + b"a" * MEGABYTE + b"\nb\n)Rs.", "more than 1000 letters"),
    "a call of a text": (
        b"\x80\x02}X\x05\x00\x00\x00resimX\x40\x42\x0f\x00" + b"a" * 1_000_000 + b")Rs.",
        "calls a value",
    ),
    "a key that repeats": (b"\x80\x02}X\x05\x00\x00\x00resim)" + b"2\x86" * 60 + b"Ns.", ""),
}
ADVICE = ("weights_only", "safe_globals", "torch.load", "PyTorch 2.6", "trust")
READERS = {
    "load_checkpoint": load_checkpoint,
    "load_detector": load_detector,
    "read_state": read_state,
}


@pytest.mark.parametrize("attack", list(ATTACKS))
@pytest.mark.parametrize("reader", list(READERS))
def test_no_reader_quotes_pytorchs_advice(tmp_path: Path, reader: str, attack: str) -> None:
    data, named = ATTACKS[attack]
    with pytest.raises(UserError, match=r"w\.pt: refused: it ") as refused:
        READERS[reader](torch_file(tmp_path / "w.pt", data))
    message = str(refused.value)
    assert named in message
    assert "\n" not in message
    assert len(message) < 300 + len(str(tmp_path))
    assert not any(word in message for word in ADVICE)
    assert message.endswith(": name a file that resim wrote")


@pytest.mark.parametrize("attack", list(ATTACKS))
@pytest.mark.parametrize(
    "words",
    ["import FILE", "export FILE --to torchvision --out OUT", "pretrain DATA --start-from FILE --out OUT",
     "detect train DATA --init FILE --out OUT", "detect predict FILE DATA --out OUT"],
)  # fmt: skip
def test_no_command_quotes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = torch_file(tmp_path / "w.pt", ATTACKS[attack][0])
    names = {"FILE": str(path), "DATA": str(tmp_path), "OUT": str(tmp_path / "out")}
    assert main([names.get(word, word) for word in words.split()]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert not any(word in error for word in ADVICE)
    assert not (tmp_path / "victim").exists()


def test_a_program_of_torchscript_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("w/data.pkl", b"\x80\x02}.")
        archive.writestr("w/constants.pkl", b"\x80\x02).")
    with pytest.raises(UserError, match="refused: it is a program of TorchScript"):
        load_checkpoint(tmp_path / "w.pt")


def test_two_members_of_one_name_are_both_verified(tmp_path: Path) -> None:
    deep = b"\x80\x02)" + b"\x85" * 200 + b"."
    for first, second in ((deep, b"\x80\x02}."), (b"\x80\x02}.", deep)):
        with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
            archive.writestr("w/data.pkl", first)
            with pytest.warns(UserWarning, match="Duplicate name"):
                archive.writestr("w/data.pkl", second)
        with pytest.raises(UserError, match=r"w\.pt: "):
            load_checkpoint(tmp_path / "w.pt")


def test_a_checkpoint_of_ours_is_read(tmp_path: Path) -> None:
    state = {"resim": "1", "model": {"w": torch.arange(6.0)}, "step": 3, "generator": torch.get_rng_state()}
    save_checkpoint(tmp_path / "w.pt", state)
    read = load_checkpoint(tmp_path / "w.pt")
    assert torch.equal(read["model"]["w"], state["model"]["w"])
    assert read["step"] == 3


def test_lists_that_repeat_each_other_are_not_printed(tmp_path: Path) -> None:
    """`repr` of such a list would never end: messages name its type."""
    bomb = b"]q\x000" + b"](h\x00h\x00eq\x000" * 60 + b"h\x00"
    for data in (
        b"}X\x01\x00\x00\x00wc_codecs\nencode\nX\x01\x00\x00\x00a" + bomb + b"\x86Rs.",
        b"}X\x01\x00\x00\x00wcnumpy\ndtype\n" + bomb + b"\x85Rs.",
    ):
        (tmp_path / "w.pkl").write_bytes(b"\x80\x02" + data)
        try:
            read_contents(tmp_path / "w.pkl")
        except UserError as error:
            assert "it encodes with <class 'list'>" in str(error)  # noqa: PT017 - the other file has no fault to report
    key = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + bomb + b"X\x03\x00\x00\x00cpuK\x01tQ"
    with pytest.raises(UserError, match="a persistent id other than a storage's"):
        read_contents(torch_file(tmp_path / "w.pt", b"\x80\x02}X\x01\x00\x00\x00w" + key + b"s."))


def test_a_step_of_a_million_digits_or_a_list_that_repeats_is_no_step() -> None:
    from resim.exchange.weights import _count

    assert [_count(value) for value in (3, True, 10**30, -(10**30), "3", [3], None)] == [3, *[None] * 6]


def test_data_in_memory_is_read_as_from_a_file(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"resim": "1"}, buffer)
    (tmp_path / "w.pt").write_bytes(buffer.getvalue())
    assert load_checkpoint(tmp_path / "w.pt") == {"resim": "1"}
