"""Stems under names of their own, PaddlePaddle's names, and dictionaries with a network's names and no network."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from exchange_files import small, trained
from resim.errors import UserError
from resim.exchange.weights import Weights, read_weights

State = dict[str, Tensor]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("thin_resnets")]


def backbone(seed: int = 0) -> State:
    state = trained(small(levels=()), seed).query.state_dict()
    return {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}


def read(tmp_path: Path, content: object) -> Weights:
    torch.save(content, tmp_path / "w.pth")
    return read_weights(tmp_path / "w.pth")


def assert_is(weights: Weights, state: State) -> None:
    own = {name.removeprefix("backbone."): value for name, value in weights.tensors.items()}
    assert own.keys() == state.keys()
    assert all(torch.equal(own[name], state[name]) for name in own)


def renamed(conv: str, bn: str, stage: str = "layer{}") -> State:
    """A ResNet whose stem has other names; `stage` is the name of a stage, by its number."""
    state: State = {}
    for name, value in backbone().items():
        first, _, rest = name.partition(".")
        new = {"conv1": conv, "bn1": bn}.get(first) or stage.format(first[-1])
        state[f"{new}.{rest}"] = value
    return state


STEMS = {
    "a sequence": ("layer0.0", "layer0.1", "layer{}"),
    "a stem": ("stem.0", "stem.1", "layer{}"),
    "a module": ("layer0.conv1", "layer0.bn1", "layer{}"),
    "a convolution with its norm": ("stem.conv", "stem.bn", "layer{}"),
    "names of their own": ("firstconv", "firstbn", "layer{}"),
    "a sequence of sequences": ("0.0", "0.1", "{}"),
    "another place in the sequence": ("features.0.conv", "features.0.norm", "features.{}"),
}


@pytest.mark.parametrize("form", list(STEMS))
@pytest.mark.parametrize("prefix", ["", "module.encoder."])
def test_a_stem_under_another_name_is_read(tmp_path: Path, form: str, prefix: str) -> None:
    state = {f"{prefix}{name}": value for name, value in renamed(*STEMS[form]).items()}
    weights = read(tmp_path, {"state_dict": state | {f"{prefix}head.weight": torch.zeros(2, 3)}})
    assert_is(weights, backbone())
    assert weights.left_over == (f"{prefix}head.weight",)


UNLIKE: dict[str, State] = {
    "two convolutions": {"layer0.3.weight": torch.zeros(16, 16, 3, 3)},
    "two norms": {"layer0.4.running_var": torch.zeros(16)},
    "a bias": {"layer0.0.bias": torch.zeros(16)},
    "two stems": {"depth.0.weight": torch.zeros(16, 3, 7, 7)},
}


@pytest.mark.parametrize("what", list(UNLIKE))
def test_a_stem_of_another_kind_is_not_taken_for_one(tmp_path: Path, what: str) -> None:
    with pytest.raises(UserError, match="is no complete resnet18: 6 missing"):
        read(tmp_path, renamed("layer0.0", "layer0.1") | UNLIKE[what])


def test_paddlepaddles_names(tmp_path: Path) -> None:
    """Its ResNets have torchvision's names, with `_mean` and `_variance` in the norms and no counters."""
    statistics = {"running_mean": "_mean", "running_var": "_variance"}
    file: dict[str, Any] = {"StructuredToParameterName@@": {"conv1.weight": "conv2d_0.w_0"}}
    for name, value in backbone().items():
        parent, _, leaf = name.rpartition(".")
        if leaf != "num_batches_tracked":
            file[f"{parent}.{statistics.get(leaf, leaf)}"] = value.numpy()
    (tmp_path / "resnet18.pdparams").write_bytes(pickle.dumps(file, protocol=2))
    weights = read_weights(tmp_path / "resnet18.pdparams")
    assert_is(weights, {n: torch.zeros_like(v) if n.endswith("tracked") else v for n, v in backbone().items()})
    assert len(weights.added) == 20


@pytest.mark.parametrize("kind", [torch.int64, torch.float32])
def test_counters_of_shape_1_become_scalars(tmp_path: Path, kind: torch.dtype) -> None:
    state = {n: v.reshape(1).to(kind) if n.endswith("tracked") else v for n, v in backbone().items()}
    weights = read(tmp_path, state)
    assert weights.tensors["backbone.bn1.num_batches_tracked"].shape == ()
    assert weights.tensors["backbone.bn1.num_batches_tracked"] == 7


def test_mocos_names_without_its_queue_are_of_any_program(tmp_path: Path) -> None:
    query, key = (
        {f"module.encoder_{letter}.{n}": v for n, v in backbone(seed).items()} for seed, letter in enumerate("qk")
    )
    weights = read(tmp_path, {"model": query | key | {"module.projector_q.0.weight": torch.zeros(2)}, "epoch": 3})
    assert weights.kind == "checkpoint with MoCo's names (resnet18, epoch 3)"
    assert_is(weights, backbone())


# -- names of a network without one


def moments() -> State:
    return {n: torch.ones_like(v) for n, v in backbone().items() if not re.search("running|tracked", n)}


FIRST: dict[str, Callable[[State], dict[Any, Any]]] = {
    "moments by name": lambda s: {"optimizer": {"exp_avg": moments()}, "net": s},
    "a student's moments": lambda s: {"student_optimizer": {"exp_avg": moments()}, "weights": s},
    "gradients": lambda s: {"gradients": moments(), "weights": s},
    "in one dictionary": lambda s: (
        {f"exp_avg.{n}": v for n, v in moments().items()} | {f"some.long.place.{n}": v for n, v in s.items()}
    ),
}


@pytest.mark.parametrize("form", list(FIRST))
def test_moments_and_gradients_are_no_network(tmp_path: Path, form: str) -> None:
    weights = read(tmp_path, FIRST[form](backbone()))
    assert_is(weights, backbone())
    assert weights.warnings == ()


def test_a_network_with_other_norms_is_reported(tmp_path: Path) -> None:
    """A student with GroupNorm has no statistics either, and it is a network."""
    content = {f"student.{n}": v for n, v in moments().items()} | {f"teacher.{n}": v for n, v in backbone().items()}
    (warning,) = read(tmp_path, content).warnings
    assert warning.startswith("the network below 'teacher.' is read; there are others below 'student.': resim import")


@pytest.mark.parametrize(
    ("taken", "other"), [("encoder_s.", "encoder_t."), ("encoder.", "encoder_m."), ("f.", "f_moving.")]
)
@pytest.mark.parametrize("copy_first", [False, True])
def test_letters_and_words_of_copies(tmp_path: Path, taken: str, other: str, copy_first: bool) -> None:
    groups = [
        {f"{taken}{name}": value for name, value in backbone(0).items()},
        {f"{other}{name}": value for name, value in backbone(1).items()},
    ]
    first, second = reversed(groups) if copy_first else groups
    assert_is(read(tmp_path, first | second), backbone(0))


def test_keys_that_are_numbers(tmp_path: Path) -> None:
    """A file may have networks by epoch, or other keys next to its network."""
    assert_is(read(tmp_path, {1: {"state_dict": backbone()}}), backbone())
    assert_is(read(tmp_path, {"state_dict": backbone(), 0: "x", (1, 2): "y", None: 3}), backbone())
    with pytest.raises(UserError, match=r"contains no named weights \(a dict\)"):
        read(tmp_path, {1: torch.zeros(1)})
