"""Files of PyTorch's as they are in use: checksums, protocols, saved modules, TorchScript, shards."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from exchange_files import SMALL, own_checkpoint
from resim.errors import UserError
from resim.exchange.files.contents import read_contents, tensors_in
from resim.exchange.training_state import import_state
from resim.exchange.weights import read_weights
from resim.runs.checkpoints import load_checkpoint

State = dict[str, Tensor]


def tensors_of(path: Path, *keys: str) -> State:
    contents = read_contents(path)
    data: Any = contents.data
    for key in keys:
        data = data[key]
    return tensors_in(contents, data)[0]


def assert_equal(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype is other[name].dtype
        assert torch.equal(value, other[name]), name


# -- every kind of tensor, in every form


def strange_tensors() -> State:
    base = torch.arange(24.0).reshape(2, 3, 4)
    kinds = (torch.float64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64)
    return {
        "view": base[:, 1:, ::2],
        "transposed": base.permute(2, 0, 1),
        "expanded": torch.ones(1).expand(3),
        "channels last": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "shared": base,
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "parameter": nn.Parameter(torch.randn(2)),
        "uint16": torch.arange(3).to(torch.uint16),
        **{str(kind): torch.arange(3).to(kind) for kind in kinds},
    }


@pytest.mark.parametrize("form", ["2", "3", "4", "5", "legacy", "pickle-2", "pickle-5"])
def test_tensors_are_read_as_pytorch_reads_them(tmp_path: Path, form: str) -> None:
    path = tmp_path / "w.pth"
    state = strange_tensors()
    if form == "legacy":
        state.pop("uint16")  # which the old form has not
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif form.startswith("pickle"):
        path.write_bytes(pickle.dumps(state, protocol=int(form[-1])))
    else:
        torch.save(state, path, pickle_protocol=int(form))
    assert_equal(tensors_of(path), {name: value.detach() for name, value in state.items()})


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_numbers_of_less_than_32_bits_are_widened(tmp_path: Path, kind: torch.dtype) -> None:
    value = torch.tensor([1.0, -0.5, 3.0]).to(kind)
    torch.save({"w": value}, tmp_path / "w.pth")
    assert_equal(tensors_of(tmp_path / "w.pth"), {"w": value.float()})


def test_a_tensor_outside_of_its_storage(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(7, 3)}, tmp_path / "ok.pth")
    with zipfile.ZipFile(tmp_path / "ok.pth") as old, zipfile.ZipFile(tmp_path / "w.pth", "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, data.replace(b"K\x07K\x03\x86", b"K\x09K\x03\x86"))  # its shape, in the pickle
    with pytest.raises(UserError, match=r"w: it contains a tensor of shape \(9, 3\) outside its storage"):
        tensors_of(tmp_path / "w.pth")


# -- checksums


def flip(path: Path, member: str, bit: int = 3) -> None:
    """Change one bit in the middle of a member."""
    with zipfile.ZipFile(path) as archive:
        info = next(entry for entry in archive.infolist() if entry.filename.endswith(member))
        with archive.open(info) as file:
            file.seek(info.file_size // 2)
            byte = file.read(1)
    data = bytearray(path.read_bytes())
    header = info.header_offset
    name, extra = (int.from_bytes(data[header + at : header + at + 2], "little") for at in (26, 28))
    place = header + 30 + name + extra + info.file_size // 2
    assert data[place : place + 1] == byte
    data[place] ^= 1 << bit
    path.write_bytes(bytes(data))


@pytest.mark.slow
@pytest.mark.parametrize("member", ["data/3", "data.pkl", "byteorder"])
def test_a_flipped_bit_is_refused_with_its_place(tmp_path: Path, member: str) -> None:
    path = tmp_path / "w.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    flip(path, member)
    with pytest.raises(UserError, match=rf"w\.pth: damaged: w/{member} in it does not match its checksum \(Bad CRC-32"):
        read_weights(path)


@pytest.mark.slow
@pytest.mark.parametrize("member", ["data/3", "data.pkl"])
def test_a_flipped_bit_in_our_own_checkpoint(tmp_path: Path, member: str) -> None:
    path = tmp_path / "last.pt"
    own_checkpoint(path, SMALL)
    load_checkpoint(path)
    flip(path, member)
    for read in (load_checkpoint, read_weights, import_state):
        with pytest.raises(UserError, match=r"last\.pt: damaged: its \d+ bytes do not match the checksum at its end"):
            read(path)


def test_a_file_without_checksums_is_read(tmp_path: Path) -> None:
    state = {"w": torch.randn(5), "v": torch.randn(3)}
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "w.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    assert_equal(tensors_of(tmp_path / "w.pth"), state)


def test_members_that_claim_each_other(tmp_path: Path) -> None:
    """An archive whose table names the same bytes a hundred times."""
    torch.save({"w": torch.zeros(1000)}, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth", "a") as archive:
        large = next(entry for entry in archive.infolist() if entry.filename.endswith("data/0"))
        archive.filelist.extend([large] * 100)
        archive._didModify = True  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"damaged: its members claim more than its \d+ bytes"):
        read_contents(tmp_path / "w.pth")


# -- other archives


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("w.npz", "is an archive of NumPy's (.npz) (a.npy), not a file of torch.save"),
        ("w.zip", "is a zip archive of files (inner.pth), not a file of torch.save: unpack it"),
        ("w.pth.gz", "is compressed with gzip: unpack it first"),
        ("w.tar", "is a tar archive: unpack it, and name a file of weights in it"),
        ("w.npy", "is a file of NumPy's (.npy): save a state_dict"),
    ],
)
def test_archives_of_other_kinds(tmp_path: Path, name: str, message: str) -> None:
    path = tmp_path / name
    if name == "w.npz":
        np.savez(path, a=np.zeros(3))
    elif name == "w.npy":
        np.save(path, np.zeros(3))
    elif name == "w.zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("inner.pth", b"x")
    else:
        path.write_bytes(b"\x1f\x8b" + bytes(300) if name == "w.pth.gz" else bytes(257) + b"ustar" + bytes(300))
    with pytest.raises(UserError) as caught:
        read_weights(path)
    assert message in str(caught.value)


# -- saved modules and TorchScript


class Wrapper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = torchvision.models.resnet18()
        self.register_buffer("table", torch.zeros(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["zip", "legacy", "parallel", "with others"])
@pytest.mark.filterwarnings("ignore::torch.serialization.SourceChangeWarning", "ignore:Couldn't retrieve source code")
def test_a_saved_module_is_read(tmp_path: Path, form: str) -> None:
    model = Wrapper()
    content: Any = {"model": model, "epoch": 3} if form == "with others" else model
    content = nn.DataParallel(model) if form == "parallel" else content
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=form != "legacy")
    weights = read_weights(tmp_path / "w.pth")
    state = model.encoder.state_dict()
    assert_equal(weights.tensors, {f"backbone.{name}": v for name, v in state.items() if name[:3] != "fc."})
    assert [name.rpartition("fc.")[2] for name in weights.left_over] == ["weight", "bias"]
    assert any("Wrapper" in kind for kind in weights.passed_over)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("way", ["script", "trace"])
def test_torchscript_is_read_without_being_run(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = torchvision.models.resnet18().eval()
    made: Any = torch.jit.script(model) if way == "script" else torch.jit.trace(model, torch.zeros(1, 3, 32, 32))
    made.save(str(tmp_path / "model.pt"))

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("TorchScript was loaded")

    monkeypatch.setattr(torch.jit, "load", forbidden)
    monkeypatch.setattr(torch, "load", forbidden)
    state = {f"backbone.{name}": value for name, value in model.state_dict().items() if name[:3] != "fc."}
    assert_equal(read_weights(tmp_path / "model.pt").tensors, state)


# -- shards


def write_shards(folder: Path, form: str) -> State:
    state = torchvision.models.resnet18().state_dict()
    names = list(state)
    places = {}
    for number, part in enumerate((names[:50], names[50:])):
        file = f"part-{number}.{'safetensors' if form == 'safetensors' else 'bin'}"
        own = {name: state[name].clone() for name in part}
        save_file(own, folder / file) if form == "safetensors" else torch.save(own, folder / file)
        places |= dict.fromkeys(part, file)
    stem = "model.safetensors" if form == "safetensors" else "pytorch_model.bin"
    (folder / f"{stem}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return {f"backbone.{name}": value for name, value in state.items() if name[:3] != "fc."}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_shards_are_read_as_one(tmp_path: Path, form: str) -> None:
    state = write_shards(tmp_path, form)
    index = next(tmp_path.glob("*.index.json"))
    for path in (tmp_path, index):
        assert_equal(read_weights(path).tensors, state)
    next(tmp_path.glob("part-1.*")).unlink()
    with pytest.raises(UserError, match=r"part-1\.\w+: cannot be read \(No such file"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (
            '{"weight_map": {"a": "../s.bin"}}',
            "names the shard '../s.bin': shards must be in the folder of the index",
        ),
        ('{"weight_map": {"a": "/etc/passwd"}}', "names the shard '/etc/passwd'"),
        ('{"weight_map": {}}', "is no index of shards"),
        ("[]", "is no index of shards"),
        ("{", "is no JSON"),
        ('{"weight_map": {"b": "part.bin"}}', "states that b is in part.bin, which has no such entry"),
    ],
)
def test_an_index_that_is_wrong(tmp_path: Path, index: str, message: str) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "part.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(index)
    with pytest.raises(UserError) as caught:
        read_weights(tmp_path)
    assert message in str(caught.value)


def test_a_distributed_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(b"x")
    with pytest.raises(UserError, match=r"is a distributed checkpoint: python -m torch\.distributed\.checkpoint"):
        read_weights(tmp_path)
