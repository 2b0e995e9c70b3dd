"""Objects that real checkpoints have next to their weights: read, or passed over by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._tensor import _rebuild_from_type, _rebuild_from_type_v2
from torch._utils import _rebuild_device_tensor_from_cpu_tensor, _rebuild_device_tensor_from_numpy
from torchvision.models import resnet18

from resim.errors import UserError
from resim.exchange.files.contents import read_contents, tensors_in
from resim.exchange.weights import read_weights


def read(tmp_path: Path, content: object) -> tuple[dict[str, Any], tuple[str, ...]]:
    torch.save(content, tmp_path / "w.pth")
    contents = read_contents(tmp_path / "w.pth")
    return dict(contents.data), contents.passed_over


BESIDE: dict[str, tuple[Callable[[], object], str]] = {
    "the name of the machine": (os.uname, "posix.uname_result"),
    "the state of a file": (lambda: Path().stat(), "os.stat_result"),
    "the size of a terminal": (lambda: os.terminal_size((80, 24)), "os.terminal_size"),
    "a matrix": (lambda: np.array([[1.0]]).view(np.matrix), ".matrix"),
    "records": (lambda: np.zeros(2, dtype=[("a", np.int64)]).view(np.recarray), ".recarray"),
}


@pytest.mark.parametrize("what", list(BESIDE))
@pytest.mark.parametrize("protocol", [2, 5])
def test_plain_records_are_passed_over_by_name(tmp_path: Path, what: str, protocol: int) -> None:
    make, name = BESIDE[what]
    torch.save({"conv1.weight": torch.ones(2), "beside": make()}, tmp_path / "w.pth", pickle_protocol=protocol)
    contents = read_contents(tmp_path / "w.pth")
    tensors, others = tensors_in(contents, contents.data)
    assert torch.equal(tensors["conv1.weight"], torch.ones(2))
    assert others == ["beside"]
    assert any(kind.endswith(name) for kind in contents.passed_over)


def test_an_array_in_a_mapped_file_is_an_array(tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "m", dtype=np.float32, mode="w+", shape=(2,))
    mapped[:] = (3, 4)
    data, passed_over = read(tmp_path, {"a": mapped})
    assert data["a"].tensor().tolist() == [3, 4]
    assert passed_over == ()


class OfAccelerator:
    """A tensor as PyTorch pickles one of an accelerator that it reaches through a plug-in, such as a TPU."""

    def __init__(self, value: Tensor, function: Callable[..., Any]) -> None:
        self.value, self.function = value, function

    def __reduce__(self) -> tuple[Any, ...]:
        content = self.value.numpy() if self.function is _rebuild_device_tensor_from_numpy else self.value
        return self.function, (content, self.value.dtype, "xla:0", False)


@pytest.mark.parametrize("function", [_rebuild_device_tensor_from_numpy, _rebuild_device_tensor_from_cpu_tensor])
def test_tensors_of_accelerators(tmp_path: Path, function: Callable[..., Any]) -> None:
    torch.save({"a": OfAccelerator(torch.tensor([1.0, 2.0]), function)}, tmp_path / "w.pth")
    contents = read_contents(tmp_path / "w.pth")
    assert tensors_in(contents, contents.data)[0]["a"].tolist() == [1, 2]


class OfType:
    """A tensor of a subclass as PyTorch 1.7 to 1.9 pickles one, by two names of the same module."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        function, arguments = self.value.__reduce_ex__(2)[:2]  # type: ignore[misc]
        return _rebuild_from_type, (function, torch.Tensor, arguments, {})


def test_tensors_of_subclasses_of_older_versions(tmp_path: Path) -> None:
    torch.save({"a": OfType(torch.tensor([1.0, 2.0]))}, tmp_path / "w.pth")
    contents = read_contents(tmp_path / "w.pth")
    assert tensors_in(contents, contents.data)[0]["a"].tolist() == [1, 2]


class DTensor(torch.Tensor):
    """A tensor whose pickle has the form of a distributed one: made by a function of its own module."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuild_from_type_v2, (_of_parts, DTensor, (), {})


def _of_parts() -> None:
    raise AssertionError


def test_a_part_of_a_tensor_says_how_to_save_all_of_it(tmp_path: Path) -> None:
    torch.save({"layer1.0.conv1.weight": torch.zeros(2).as_subclass(DTensor)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"is one process's part of a tensor \(DTensor\): save a full state_"):
        read_weights(tmp_path / "w.pth")


class Quantised(DTensor):
    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuild_from_type_v2, (_of_parts, Quantised, (), {})


def test_a_tensor_of_another_class_is_named(tmp_path: Path) -> None:
    torch.save({"layer1.0.conv1.weight": torch.zeros(2).as_subclass(Quantised)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"conv1.weight: is a \S+\.Quantised, which is not read: save dense weights"):
        read_weights(tmp_path / "w.pth")


def test_a_head_of_another_class_is_left_over(tmp_path: Path) -> None:
    state = {name: value for name, value in resnet18().state_dict().items() if name != "fc.weight"}
    torch.save(state | {"fc.weight": torch.zeros(2).as_subclass(Quantised)}, tmp_path / "w.pth")
    weights = read_weights(tmp_path / "w.pth")
    assert weights.left_over == ("fc.bias", "fc.weight")
    assert torch.equal(weights.tensors["backbone.conv1.weight"], state["conv1.weight"])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_oldest_form_under_all_protocols(tmp_path: Path, protocol: int) -> None:
    content = {"a": torch.tensor([1.0, 2.0])}
    torch.save(content, tmp_path / "w.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    assert read_contents(tmp_path / "w.pth").data["a"].tensor().tolist() == [1, 2]
