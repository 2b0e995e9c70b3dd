"""Files of weights: pickles, zips of torch.save, safetensors, Detectron2's files, folders of the hub."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import math
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torchvision.models import resnet18

from resim import recipes
from resim.detection.checkpoint import holds_detector, load_detector
from resim.detection.detector import build_detector
from resim.errors import UserError
from resim.exchange.training_state import import_state, start_state
from resim.exchange.weights import read_weights
from resim.model.resim import ReSim
from resim.regions.level import Level
from resim.runs.checkpoints import load_checkpoint
from resim.runs.config import Recipe
from tests.fuzz.mutate import mutate_bytes, to_json
from thin_resnets import TinyResNet, resnets_of
from tiny_detectors import tiny, tiny_recipe

_TENSOR = "tensor"  # {"tensor": [sides]} in a tree becomes a tensor of zeros


@contextlib.contextmanager
def tiny_networks() -> Iterator[None]:
    """Torchvision's ResNets have a thirty-second of their channels: files are whole, and small."""
    with resnets_of(TinyResNet):
        yield


def _tensors(names: str, prefix: str = "") -> dict[str, Any]:
    shapes = {"conv1.weight": [4, 3, 7, 7], "bn1.weight": [4], "bn1.running_mean": [4], "fc.weight": [3, 4],
              "layer1.0.conv1.weight": [4, 4, 3, 3], "layer4.1.conv2.weight": [4, 4, 3, 3], "head.0.weight": [4, 4],
              "layer1.0.bn1.num_batches_tracked": [], "fpn.lateral5.weight": [8, 4, 1, 1]}  # fmt: skip
    return {f"{prefix}{name}": {_TENSOR: shape} for name, shape in shapes.items() if names in name}


def _shapes(module: torch.nn.Module) -> dict[str, Any]:
    return {name: {_TENSOR: list(value.shape)} for name, value in module.state_dict().items()}


@functools.cache
def tiny_pretraining() -> Recipe:
    """The recipe of a network whose checkpoint has some ten thousand bytes."""
    levels = (Level(name="P4", window=24, step=16, negatives="all"), Level(name="C4", window=24, step=16))
    sizes = {"fpn_width": 4, "conv_width": 4, "dim": 4, "queue_size": 8, "group_size": 2}
    recipe = recipes.quick()
    return dataclasses.replace(
        recipe, model=dataclasses.replace(recipe.model, backbone="resnet18", levels=levels, **sizes)
    )


@functools.cache
def trees() -> Sequence[Any]:
    """Checkpoints of ours, of a detector, of MoCo and of others: whole ones of tiny networks, and torsos."""
    recipe, c4 = tiny_pretraining(), tiny_recipe(tiny(neck="c4", norm="batch"))
    with tiny_networks(), torch.device("meta"):
        model, resnet = _shapes(ReSim(recipe.model)), _shapes(resnet18())
        detecting = _shapes(build_detector(c4.detector, c4.images, num_classes=1))
    data = {"images": 3, "sources": ["/a/b"], "hash": "0123"}
    momenta = [value for name, value in model.items() if name.startswith("query.") and "running" not in name][:9]
    optimizer = {"state": {str(number): {"momentum_buffer": value} for number, value in enumerate(momenta)},
                 "param_groups": [{"lr": 0.1, "params": list(range(90))}]}  # fmt: skip
    ours = {"resim": "1.0", "recipe": recipe.to_json(), "model": model, "step": 3, "epoch": 1, "data": data,
            "optimizer": optimizer, "imported": {"kind": "a", "licence": "MIT", "origin": "b"}}  # fmt: skip
    detector = {"resim": "1.0", "kind": "detect", "recipe": c4.to_json(), "classes": ["a"], "category_ids": [1],
                "keypoint_names": [], "keypoint_labels": [], "init": "random", "precision": "float32", "step": 1,
                "model": detecting}  # fmt: skip
    queue = {"module.queue": {_TENSOR: [4, 8]}, "module.queue_ptr": {_TENSOR: [1]}}
    names = {name.replace("fc.", "fc.2."): value for name, value in resnet.items() if not name.startswith("fc.")}
    moco = {"epoch": 200, "arch": "resnet18", "optimizer": optimizer,
            "state_dict": {f"module.encoder_{side}.{name}": value for side in "qk" for name, value in names.items()}
            | {f"module.encoder_q.fc.{layer}.{kind}": {_TENSOR: shape} for layer, width in ((0, 16), (2, 4))
               for kind, shape in (("weight", [width, 16]), ("bias", [width]))} | queue}  # fmt: skip
    export = {"resim": "1.0", "kind": "detect", "state_dict": detecting,
              "metadata": {"kind": "detect", "detector": json.dumps(detector | {"model": None})}}  # fmt: skip
    args = {"state_dict": resnet, "args": {"lr": 0.1, "model": "resnet18"}, "meta": {"config": "mean=[1, 2, 3]"}}
    old = {"arch": "resnet18", "state_dict": _tensors("", "module.encoder_q."), "optimizer": optimizer}
    torsos = [ours | {"model": _tensors("", "query.backbone.")}, _tensors(""), {"model": _tensors("", "backbone.")},
              detector | {"model": {"backbone.body.conv1.weight": {_TENSOR: [4, 3, 7, 7]}}}, old]  # fmt: skip
    return [ours, detector, moco, args, export, resnet, *torsos * 2]  # a torso takes a tenth of the time


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


def fill(tree: Any, *, arrays: bool, odd: float = 0.0, rng: Random | None = None) -> Any:
    """The tree with tensors, or NumPy's arrays, in their places; a share `odd` of the tensors is of an odd kind."""
    if isinstance(tree, dict):
        sides = tree.get(_TENSOR)
        if set(tree) == {_TENSOR} and isinstance(sides, list) and all(type(side) is int for side in sides):
            shape = [min(abs(side), 64) for side in sides[:4]]
            if rng is not None and not arrays and rng.random() < odd:
                return _odd_tensor(shape, rng)
            return np.zeros(shape, np.float32) if arrays else torch.zeros(shape)
        names = {name: int(name) if name.isdecimal() and len(name) < 5 else name for name in tree}
        return {names[name]: fill(value, arrays=arrays, odd=odd, rng=rng) for name, value in tree.items()}
    return [fill(value, arrays=arrays, odd=odd, rng=rng) for value in tree] if isinstance(tree, list) else tree


_DTYPES = tuple(sorted({kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)}, key=str))
_VALUES = (float("nan"), float("inf"), -1.0, 1e38, 2.0**40)


def _odd_tensor(shape: list[int], rng: Random) -> Any:
    """A tensor that files of weights seldom have: of another type, without content, with more than its storage has."""
    kind = rng.randrange(10)
    if kind <= 2:
        with contextlib.suppress(RuntimeError):  # a type that has no zeros
            return torch.zeros(shape, dtype=rng.choice(_DTYPES))
    if kind <= 4:
        return torch.full(shape, rng.choice(_VALUES), dtype=rng.choice((torch.float32, torch.float64)))
    if kind == 5:
        return torch.zeros(1).expand(rng.choice(([10**12], [10**6] * 3, [2**31, 2], [0, 10**12], shape)))
    return rng.choice(
        (
            lambda: torch.zeros(shape).to_sparse(),
            lambda: torch.zeros(shape, device="meta"),
            lambda: torch.zeros(shape, requires_grad=True),
            lambda: torch.nn.Parameter(torch.zeros(shape)),
            lambda: torch.zeros([*shape, 2])[..., 0],
            lambda: torch.zeros([0, *shape]),
            lambda: torch.zeros([1, *shape]),
            lambda: torch.quantize_per_tensor(torch.zeros(shape), 0.1, 0, torch.quint8),
            lambda: torch.zeros(shape).numpy(),
            lambda: torch.arange(rng.randrange(9)),
            lambda: torch.zeros(4).untyped_storage(),
        )
    )()


def encode(tree: Any, rng: Random) -> bytes:
    """A tree as one of the forms of weights."""
    form = rng.choice(("torch", "torch", "legacy", "pickle", "safetensors"))
    try:
        if form == "safetensors":
            return _safetensors(tree, rng)
        content = fill(tree, arrays=form == "pickle", odd=rng.choice((0.0, 0.0, 0.0, 0.02, 0.3)), rng=rng)
        if rng.random() < 0.2 and isinstance(content, dict):
            content = OrderedDict(content)
        if form == "pickle":
            return pickle.dumps(content, protocol=rng.randrange(6))
        buffer = io.BytesIO()
        torch.save(content, buffer, _use_new_zipfile_serialization=form == "torch")
        if form == "torch":
            return _with_other_pickle(buffer.getvalue(), rng) if rng.random() < 0.2 else buffer.getvalue()
        return _with_fixed_keys(buffer.getvalue())
    except Exception:  # what PyTorch, or pickle, cannot write
        return pickle.dumps({"a": 1})


def _with_other_pickle(data: bytes, rng: Random) -> bytes:
    """An archive whose pickle is damaged and whose checksums are right: else they refuse it before it is read."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            is_pickle = entry.filename.endswith("data.pkl")
            new.writestr(entry.filename, mutate_bytes(content, rng, (content,)) if is_pickle else content)
    return out.getvalue()


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
    """Every tree in every form, whole, and a module as it is saved."""
    rng = Random(0)
    return [encode(tree, rng) for tree in (*trees(), *detectron2_trees()) for _ in range(4)] + [_module()] * 4


def _module() -> bytes:
    with tiny_networks():
        network = resnet18()
    buffer = io.BytesIO()
    torch.save({"model": network}, buffer, _use_new_zipfile_serialization=False)  # the new form has checksums
    return buffer.getvalue()


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
    start_state(str(path), tiny_pretraining())


def import_file(data: bytes, folder: Path) -> None:
    """Make a checkpoint of pre-training from the file, by the recipe in it."""
    path = folder / f"w{_suffix(data)}"
    path.write_bytes(data)
    import_state(str(path))


def read_opcodes(data: bytes, folder: Path) -> None:
    """Read a pickle alone, and as the content of a file of torch.save."""
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
