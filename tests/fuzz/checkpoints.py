"""Files of weights: pickles, zips of torch.save, safetensors, Detectron2's files, folders of the hub."""

from __future__ import annotations

import functools
import io
import json
import math
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from resim import recipes
from resim.detection.checkpoint import holds_detector, load_detector
from resim.errors import UserError
from resim.exchange.training_state import start_state
from resim.exchange.weights import read_weights
from resim.runs.checkpoints import load_checkpoint
from tests.fuzz.mutate import to_json
from tiny_detectors import tiny_recipe

_TENSOR = "tensor"  # {"tensor": [sides]} in a tree becomes a tensor of zeros


def _tensors(names: str, prefix: str = "") -> dict[str, Any]:
    shapes = {"conv1.weight": [4, 3, 7, 7], "bn1.weight": [4], "bn1.running_mean": [4], "fc.weight": [3, 4],
              "layer1.0.conv1.weight": [4, 4, 3, 3], "layer4.1.conv2.weight": [4, 4, 3, 3], "head.0.weight": [4, 4],
              "layer1.0.bn1.num_batches_tracked": [], "fpn.lateral5.weight": [8, 4, 1, 1]}  # fmt: skip
    return {f"{prefix}{name}": {_TENSOR: shape} for name, shape in shapes.items() if names in name}


@functools.cache
def trees() -> Sequence[Any]:
    """Checkpoints of ours, of a detector, of MoCo and of others, with small tensors."""
    recipe = recipes.quick().to_json()
    detect = tiny_recipe().to_json()
    data = {"images": 3, "sources": ["/a/b"], "hash": "0123"}
    ours = {"resim": "1.0", "recipe": recipe, "model": _tensors("", "query.backbone."), "step": 3, "epoch": 1,
            "data": data, "optimizer": {"state": {"0": {"momentum_buffer": {_TENSOR: [4]}}},
                                        "param_groups": [{"lr": 0.1, "params": [0, 1]}]}}  # fmt: skip
    detector = {"resim": "1.0", "kind": "detect", "recipe": detect, "classes": ["a"], "category_ids": [1],
                "keypoint_names": [], "keypoint_labels": [], "init": "random", "precision": "float32", "step": 1,
                "model": {"backbone.body.conv1.weight": {_TENSOR: [4, 3, 7, 7]}}}  # fmt: skip
    moco = {"epoch": 200, "arch": "resnet50", "state_dict": _tensors("", "module.encoder_q."),
            "optimizer": {"state": {}, "param_groups": []}}  # fmt: skip
    export = {"state_dict": detector["model"], "metadata": {"kind": "detect", "detector": json.dumps(detector)}}
    args = {"state_dict": _tensors(""), "args": {"lr": 0.1, "model": "resnet50"}, "meta": {"config": "mean=[1, 2, 3]"}}
    return [ours, detector, moco, args, export | {"kind": "detect"}, _tensors(""), {"model": _tensors("", "backbone.")}]


@functools.cache
def detectors() -> Sequence[Any]:
    """Checkpoints and exports of detectors."""
    return [tree for tree in trees() if tree.get("kind") == "detect"]


@functools.cache
def detectron2_trees() -> Sequence[Any]:
    """Detectron2's backbones and detectors."""
    names = {"stem.conv1.weight": [4, 3, 7, 7], "stem.conv1.norm.weight": [4], "res2.0.conv1.weight": [4, 4, 1, 1],
             "res5.2.conv3.norm.running_var": [4]}  # fmt: skip
    body = {name: {_TENSOR: shape} for name, shape in names.items()}
    whole = {f"backbone.bottom_up.{name}": value for name, value in body.items()}
    whole |= {
        "backbone.fpn_lateral5.weight": {_TENSOR: [8, 4, 1, 1]},
        "roi_heads.box_head.fc1.weight": {_TENSOR: [4, 4]},
    }
    author = {"__author__": "MoCo", "matching_heuristics": True}
    caffe2 = {"blobs": {"conv1_w": {_TENSOR: [4, 3, 7, 7]}}}
    return [{"model": body} | author, {"model": whole, "iteration": 9}, body, caffe2]


def _fill(tree: Any, *, arrays: bool) -> Any:
    """The tree with tensors, or NumPy's arrays, in their places."""
    if isinstance(tree, dict):
        sides = tree.get(_TENSOR)
        if set(tree) == {_TENSOR} and isinstance(sides, list) and all(type(side) is int for side in sides):
            shape = [min(abs(side), 64) for side in sides[:4]]
            return np.zeros(shape, np.float32) if arrays else torch.zeros(shape)
        names = {name: int(name) if name.isdecimal() and len(name) < 5 else name for name in tree}
        return {names[name]: _fill(value, arrays=arrays) for name, value in tree.items()}
    return [_fill(value, arrays=arrays) for value in tree] if isinstance(tree, list) else tree


def encode(tree: Any, rng: Random) -> bytes:
    """A tree as one of the forms of weights."""
    form = rng.choice(("torch", "torch", "legacy", "pickle", "safetensors"))
    try:
        if form == "safetensors":
            return _safetensors(tree, rng)
        content = _fill(tree, arrays=form == "pickle")
        if rng.random() < 0.2 and isinstance(content, dict):
            content = OrderedDict(content)
        if form == "pickle":
            return pickle.dumps(content, protocol=rng.randrange(6))
        buffer = io.BytesIO()
        torch.save(content, buffer, _use_new_zipfile_serialization=form == "torch")
        return buffer.getvalue() if form == "torch" else _with_fixed_keys(buffer.getvalue())
    except (RecursionError, UnicodeEncodeError, ValueError, TypeError):
        return pickle.dumps({"a": 1})


def _with_fixed_keys(data: bytes) -> bytes:
    """A legacy file whose storages are numbered: its keys are addresses in memory, different in every process."""
    keys: dict[bytes, bytes] = {}

    def numbered(match: re.Match[bytes]) -> bytes:
        return b"X\x0e\x00\x00\x00" + keys.setdefault(match[1], b"%014d" % len(keys))

    return re.sub(rb"X[\x09-\x13]\x00\x00\x00(\d{9,19})", numbered, data)


def _safetensors(tree: Any, rng: Random) -> bytes:
    tree = tree if isinstance(tree, dict) else {"a": tree}
    tensors = next((value for value in tree.values() if isinstance(value, dict) and "conv" in str(list(value))), {})
    header: dict[str, Any] = {}
    size = 0
    for name, value in tensors.items() if isinstance(tensors, dict) else ():
        shape = value.get(_TENSOR) if isinstance(value, dict) else None
        if isinstance(shape, list) and all(type(side) is int and 0 <= side < 64 for side in shape):
            count = min(math.prod(shape) * 4, 1 << 16)
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [size, size + count]}
            size += count
    metadata = {str(name): to_json(value).decode() for name, value in tree.items() if value is not tensors}
    header["__metadata__"] = metadata | {"format": "pt"} | ({"kind": "detect"} if rng.random() < 0.3 else {})
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


@functools.cache
def seeds() -> Sequence[bytes]:
    """Every tree in every form, whole."""
    rng = Random(0)
    return [encode(tree, rng) for tree in (*trees(), *detectron2_trees()) for _ in range(4)]


@functools.cache
def pickles() -> Sequence[bytes]:
    """Pickles of plain values in all protocols, and opcodes that build what no value is."""
    values: list[Any] = [
        {"w": np.zeros(3, np.float32)}, {"a": (1, (2, 3)), "b": [{"c": {1, 2}}], "d": frozenset("ab")},
        {"x": b"abc", "y": bytearray(b"a"), "z": 10**40, "f": 0.5, "s": "é" * 20}, {"w": torch.zeros(3)},
        {"o": OrderedDict(a=1), "dtype": np.dtype("f4"), "c": complex(1, 2), "r": range(3)},
    ]  # fmt: skip
    out = [pickle.dumps(value, protocol=protocol) for value in values for protocol in range(6)]
    opcodes = [
        b"N\x85", b"2\x86", b"(", b"t", b"q\x00", b"h\x00", b"]", b"}", b"a", b"e", b"s", b"u", b"0", b"R", b"b",
        b"\x81",
        b"cos\nsystem\n", b"\x93", b"K\x01", b"X\x01\x00\x00\x00a", b"Q", b"\x90", b"\x8f", b"\x91", b"i", b"o",
    ]  # fmt: skip
    rng = Random(0)
    for _ in range(60):
        middle = b"".join(rng.choice(opcodes) * rng.choice((1, 1, 3, 200)) for _ in range(rng.randrange(3, 30)))
        out.append(b"\x80\x04}X\x01\x00\x00\x00w" + middle + b"s.")
    return out


def _check(error: UserError) -> None:
    assert "weights_only" not in str(error), str(error)


def _suffix(data: bytes) -> str:
    return ".safetensors" if data[8:9] == b"{" else ".pkl" if data[:1] in (b"\x80", b"(", b"}") else ".pth"


def read(data: bytes, folder: Path) -> None:
    """Read a file of weights in every way; each must read or refuse it."""
    path = folder / f"w{_suffix(data)}"
    path.write_bytes(data)
    for reader in (read_weights, holds_detector, load_checkpoint):
        try:
            reader(path)
        except UserError as error:
            _check(error)


def read_detector(data: bytes, folder: Path) -> None:
    """Load a detector."""
    path = folder / f"w{_suffix(data)}"
    path.write_bytes(data)
    load_detector(path)


def read_start(data: bytes, folder: Path) -> None:
    """Begin a run with these weights."""
    path = folder / f"w{_suffix(data)}"
    path.write_bytes(data)
    start_state(str(path), recipes.quick())


def read_opcodes(data: bytes, folder: Path) -> None:
    """Read a pickle alone, and as the content of a file of torch.save."""
    import zipfile

    path = folder / "w.pkl"
    path.write_bytes(data)
    packed = folder / "w.pth"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("w/data.pkl", data)
        archive.writestr("w/version", "3\n")
        archive.writestr("w/byteorder", "little")
    for file, reader in ((path, read_weights), (packed, read_weights), (packed, load_checkpoint)):
        try:
            reader(file)
        except UserError as error:
            _check(error)


@functools.cache
def configs() -> Sequence[Any]:
    """config.json as transformers and timm write it, and the index of shards."""
    timm = {"architecture": "resnet50", "model_args": {"output_stride": 16}, "pretrained_cfg": {"mean": [0.5] * 3}}
    other = {"model_type": "resnet", "depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048], "num_channels": 3}
    return [timm, other, {"weight_map": {"conv1.weight": "model.safetensors"}, "metadata": {"total_size": 1}}]


def with_weights(folder: Path) -> None:
    """A whole file of weights, next to which the input lies."""
    (folder / "model.safetensors").write_bytes(_safetensors({"w": _tensors("")}, Random(1)))


def read_hub(data: bytes, folder: Path) -> None:
    """Read a hub folder whose config.json and index are the input."""
    (folder / "config.json").write_bytes(data)
    (folder / "model.safetensors.index.json").write_bytes(data)
    for source in (folder, folder / "model.safetensors.index.json"):
        try:
            read_weights(source)
        except UserError:
            continue
