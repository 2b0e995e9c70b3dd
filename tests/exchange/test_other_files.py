"""Files and folders that are not what their names say: the message names what they are, and the remedy."""

from __future__ import annotations

import json
import os
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from exchange_files import small, trained
from resim.errors import UserError
from resim.exchange.files.foreign_files import describe_foreign, text_in
from resim.exchange.weights import read_weights

pytestmark = pytest.mark.usefixtures("thin_resnets")


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


BYTES: dict[str, tuple[bytes, str]] = {
    "PNG": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is a PNG image"),
    "JPEG": (b"\xff\xd8\xff\xe0\0\x10JFIF\0", "is a JPEG image"),
    "WebP": (b"RIFF\x24\0\0\0WEBPVP8 ", "is a WebP image"),
    "PDF": (b"%PDF-1.5\n%\xd0\xd4", "is a PDF document"),
    "a page after a byte order mark": (b"\xef\xbb\xbf<!doctype html>", "is a web page, not the file itself"),
    "an error of a store of objects": (b'<?xml version="1.0"?>\n<Error><Code>AccessDenied', "is an XML document"),
    "an answer with its header": (b"HTTP/1.1 200 OK\r\n\r\nPK\x03\x04", "is a server's answer with its header"),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\x04", "is a 7z archive: unpack it"),
    "GGUF": (b"GGUF\x03\0\0\0", "is a GGUF file"),
    "TensorFlow Lite": (b"\x1c\0\0\0TFL3\0\0", "is a TensorFlow Lite file"),
    "MATLAB": (b"MATLAB 5.0 MAT-file, Platform", "is a file of MATLAB"),
    "ONNX of another version": (b"\x08\x0a\x12\x07pytorch\x1a\x052.0.0:", "is an ONNX file"),
    "ONNX of another program": (b"\x08\x07\x12\x0ctf2onnx 1.13:", "is an ONNX file"),
    "ONNX without a program": (b"\x08\x08:5\n\x0c", "is an ONNX file"),
    "nothing written": (bytes(5000), "is without content: its first 264 bytes are 0"),
    "text in UTF-8": ("Zugriff verweigert: Schlüssel fehlt\n".encode(), "is a text file, not a file of weights"),
    "text in UTF-16": (
        "Not found".encode("utf-16"),
        "is a text file, not a file of weights; it begins with 'Not found'",
    ),
    "msgpack": (b"\x82\xa6params\x81", "is no file of weights: it begins with the bytes 82 a6 70 61"),
}


@pytest.mark.parametrize("what", list(BYTES))
def test_the_first_bytes_show_what_a_file_is(tmp_path: Path, what: str) -> None:
    data, message = BYTES[what]
    (tmp_path / "model.pth").write_bytes(data)
    assert refusal(tmp_path / "model.pth").startswith(message)


def test_the_length_of_a_header_is_no_other_file() -> None:
    """A safetensors file begins with a length, which can be the first bytes of a TIFF image, of a program, of ONNX."""
    for first in (b"II*\0", b"MZ\x90\0", b"\x08\x01\x12\0", b"\xff\xd8\xff\0"):
        assert describe_foreign(first + bytes(4) + b'{"__metadata__":{}') is None
        assert describe_foreign(first + b"abcdef") is not None


def test_a_character_that_is_cut_is_text() -> None:
    assert text_in("aé".encode()[:-1]) == "a"
    assert text_in(b"\x80\x02") is None
    assert text_in(b"a\0b") is None


ARCHIVES = {
    "Keras": (["config.json", "model.weights.h5"], "is a Keras archive (config.json, model.weights.h5)"),
    "torch.export": (["e/archive_format", "e/models/model.json"], "is a program of torch.export"),
    "weights in an archive": (["weights/last.ckpt"], "is a zip archive of files (weights/last.ckpt)"),
}


@pytest.mark.parametrize("what", list(ARCHIVES))
def test_archives_of_other_programs(tmp_path: Path, what: str) -> None:
    names, message = ARCHIVES[what]
    with zipfile.ZipFile(tmp_path / "model.pth", "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    assert refusal(tmp_path / "model.pth").startswith(message)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.pth")
    assert refusal(tmp_path / "model.pth") == "is a pipe or a device: write it to a file first"


def test_an_unpacked_file_says_how_to_pack_it(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "model.pth")
    with zipfile.ZipFile(tmp_path / "model.pth") as archive:
        archive.extractall(tmp_path / "out")
    command = f"(cd {tmp_path / 'out'} && zip -0 -r model.pth model)"
    for folder in (tmp_path / "out", tmp_path / "out" / "model"):
        assert refusal(folder) == f"is an unpacked file of torch.save: {command} makes a file of it"


def test_the_files_of_a_folder_are_named(tmp_path: Path) -> None:
    (tmp_path / "epoch_3.pth").write_bytes(b"x")
    (tmp_path / "log.txt").write_bytes(b"x")
    assert refusal(tmp_path).endswith(f"name one of its files: {tmp_path / 'epoch_3.pth'}")


def test_one_of_several_shards_names_the_index(tmp_path: Path) -> None:
    first, last = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    save_file({"layer1.0.conv1.weight": torch.zeros(1)}, tmp_path / first)
    assert refusal(tmp_path / first) == (
        "is one of 2 shards of a network: name their index (model.*.index.json), which is missing here"
    )
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"layer1.0.conv1.weight": first, "b": last}}))
    assert refusal(tmp_path / first) == f"is one of 2 shards of a network: name {index}"


def test_a_network_in_one_shard_is_read(tmp_path: Path) -> None:
    state = trained(small(levels=())).query.state_dict()
    save_file(
        {n: v for n, v in state.items() if n.startswith("backbone.")}, tmp_path / "model-00001-of-00001.safetensors"
    )
    assert read_weights(tmp_path / "model-00001-of-00001.safetensors").config.backbone == "resnet18"


def test_a_part_of_a_distributed_checkpoint_names_its_folder(tmp_path: Path) -> None:
    torch.save(torch.zeros(1), tmp_path / "__0_0.distcp")
    assert refusal(tmp_path / "__0_0.distcp").endswith(f"name its folder, {tmp_path}")


# -- names of a network, and no network


State = dict[str, Tensor]


def backbone() -> State:
    state = trained(small(levels=())).query.state_dict()
    return {name.removeprefix("backbone."): v for name, v in state.items() if name.startswith("backbone.")}


def stages(state: State, numbers: str) -> State:
    return {name: value for name, value in state.items() if re.match(f"layer[{numbers}]", name)}


def without_norms(state: State) -> State:
    return {name: v for name, v in state.items() if not re.search(r"(^|\.)bn\d|downsample\.1", name)}


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


OTHERS: dict[str, tuple[Callable[[State], Any], str]] = {
    "ZeRO stage 3": (lambda s: {"module": {name: zeros(0) for name in s}}, "as DeepSpeed's ZeRO stage 3 saves it"),
    "optimizer": (lambda _: {"state": {}, "param_groups": [{"lr": 0.1}]}, "but the state of an optimizer without its"),
    "parameters": (
        lambda s: {n: v for n, v in s.items() if n.endswith(("weight", "bias"))},
        "its norms have no running statistics, as GroupNorm, LayerNorm and files of parameters without buffers",
    ),
    "3 x 3": (lambda s: s | {"conv1.weight": zeros(16, 3, 3, 3)}, "its first convolution is 3 x 3, as in networks for"),
    "grey": (lambda s: s | {"conv1.weight": zeros(16, 1, 7, 7)}, "its input has 1 channels, ours has 3"),
    "volumes": (lambda s: s | {"conv1.weight": zeros(16, 1, 7, 7, 7)}, "it is a network for volumes or video"),
    "wider": (lambda s: s | {"conv1.weight": zeros(32, 3, 7, 7)}, "it has 32 channels after its first convolution"),
    "folded": (lambda s: without_norms(s) | {"conv1.bias": zeros(16)}, "its norms seem to be folded into its conv"),
    "CLIP": (lambda s: stages(s, "1234") | {"attnpool.k_proj.bias": zeros(1)}, "it resembles CLIP's ResNet"),
    "HRNet": (
        lambda s: stages(s, "1") | {"stage2.0.branches.0.0.bn1.bias": zeros(1)},
        "a ResNet of 2-0-0-0 blocks, which is none of torchvision's (it resembles an HRNet)",
    ),
    "LoRA": (
        lambda s: {n.replace("conv1.weight", "conv1.base_layer.weight"): v for n, v in s.items()},
        "which resembles a network with LoRA adapters",
    ),
    "fused": (
        lambda _: {"conv1.0.bias": zeros(1), "layer1.0.conv1.0.weight": zeros(1), "layer1.0.conv1.0.bias": zeros(1)},
        "which resembles a ResNet with its norms folded into its convolutions",
    ),
    "prepared for integers": (
        lambda s: s | {"layer1.0.conv1.weight_fake_quant.scale": zeros(1)},
        "it resembles a network for integers: save its weights before quantisation",
    ),
    "deep stem": (
        lambda s: stages(s, "1234") | {f"stem.{number}.weight": zeros(8, 8, 3, 3) for number in (0, 3, 6)},
        "it resembles a ResNet with a deep stem",
    ),
}


@pytest.mark.parametrize("what", list(OTHERS))
def test_the_message_says_what_the_network_is(tmp_path: Path, what: str) -> None:
    make, message = OTHERS[what]
    torch.save(make(backbone()), tmp_path / "model.pth")
    assert message in refusal(tmp_path / "model.pth")


def test_a_header_of_safetensors_is_not_taken_for_another_file(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    header = header.ljust(0x2A4949)  # its length is the beginning of a TIFF image
    (tmp_path / "model.pth").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    assert "contains no ResNet (its names are like 'a')" in refusal(tmp_path / "model.pth")
