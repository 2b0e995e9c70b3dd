"""What weights can be exported to, and the endings of the files."""

from __future__ import annotations

from typing import Literal

Target = Literal["torchvision", "torchvision-detection", "detectron2", "timm", "safetensors", "hub", "onnx"]

WHOLE: tuple[Target, ...] = ("torchvision-detection", "safetensors", "hub")
"""Targets that take a whole detector; the others take its backbone, and its FPN where they have one."""
FpnNorm = Literal["auto", "keep", "plain", "batchnorm"]

ENDINGS: dict[Target, tuple[str, ...]] = {
    "torchvision": (".pth", ".pt", ".safetensors"),
    "torchvision-detection": (".pth", ".pt", ".safetensors"),
    "detectron2": (".pth", ".pkl"),
    "timm": (".safetensors", ".pth", ".pt"),
    "safetensors": (".safetensors",),
    "hub": ("",),
    "onnx": (".onnx",),
}
"""The first is the default; "" is a folder."""
