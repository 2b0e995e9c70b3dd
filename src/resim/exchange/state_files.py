"""A state_dict as a file of torch.save, a pickle of arrays or a safetensors file, by its ending."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from resim.runs.plain_tensors import load_tensors


def write_state(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a state_dict: `.safetensors`, or by torch.save as `{"state_dict": ..., "metadata": ...}`."""
    tensors = {name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    if path.suffix == ".safetensors":
        save_file(tensors, path, metadata={"format": "pt", **metadata})
    else:
        torch.save({"state_dict": tensors, "metadata": dict(metadata)}, path)


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a file that `write_state` wrote."""
    if path.suffix == ".safetensors":
        return load_file(path)
    return load_tensors(path.read_bytes(), path)["state_dict"]


def write_detectron2_file(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a backbone for Detectron2's checkpointer: arrays in a `.pkl`, tensors in a `.pth`."""
    content = {"__author__": f"resim; {metadata['origin']}", "matching_heuristics": True, "metadata": dict(metadata)}
    if path.suffix == ".pkl":
        arrays = {name: value.numpy() for name, value in state.items()}
        path.write_bytes(pickle.dumps({"model": arrays, **content}, protocol=4))
    else:
        tensors = {name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}
        torch.save({"model": tensors, **content}, path)
