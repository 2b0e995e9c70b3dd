"""The input and the strides of the network in a file, from evidence other than names and shapes.

Names and shapes do not distinguish BGR from RGB, or a stride in the 1 x 1 from one in the 3 x 3. Other evidence does:
buffers, a config in the file or in its folder, the signature of a program, the magnitude of the weights.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from resim.exchange.files.contents import Contents, tensors_in
from resim.exchange.files.pickle_values import shape_of
from resim.exchange.networks.input_forms import (
    BGR_STD,
    CAFFE_MEAN,
    ONES,
    InputForm,
    form_of_numbers,
    numbers_in,
    seems_unnormalised,
)
from resim.exchange.networks.recognise import Form
from resim.exchange.networks.settings import LIST, config_text, read_json, settings_in, text_in_folder
from resim.exchange.networks.strides import warn_of_dilation, warn_of_extra_modules
from resim.views.photometric import MEAN, STD

_STATISTIC = re.compile(r"((?:.*\.)?(?:(?:pixel|image|imagenet|img|input|data|norm|rgb|new)?_)?)(mean|std)")
_NO_INPUT = re.compile(r"box|coder|target|anchor|loss|head|reward")  # other parts with a mean and a deviation
_CONVERTED = re.compile(r"moco|resim|torchvision", re.IGNORECASE)


def infer_input(contents: Contents, form: Form, tensors: Mapping[str, Tensor]) -> tuple[InputForm | None, list[str]]:
    """The input form of a network, where it differs from ours, and warnings of properties that the file does not state.

    None: there is no evidence of another form than ours.
    """
    bottleneck = "backbone.layer1.0.conv3.weight" in tensors
    if form.name == "caffe2":
        return _caffe2(tensors), []
    stated = _from_meta(contents) or _from_config_json(contents) or _from_settings(contents)
    if form.name in ("resnet", "torchvision-detection", "mmdet"):
        stated = _from_buffers(contents, form) or stated
    if form.name == "detectron2":
        stated, warnings = _detectron2(contents, form, tensors)
    else:
        is_open = stated is None and form.name in ("resnet", "mmdet")  # the other programs take RGB as ours does
        warnings = _warn_of_unstated(contents, tensors) if is_open else []
    if stated is not None and not bottleneck:
        stated = dataclasses.replace(stated, stride_in_1x1=False)
    warnings += warn_of_dilation(contents, form) + warn_of_extra_modules(form)
    return (None if stated is not None and stated.is_ours and not stated.stride_in_1x1 else stated), warnings


def _detectron2(contents: Contents, form: Form, tensors: Mapping[str, Tensor]) -> tuple[InputForm | None, list[str]]:
    author = contents.data.get("__author__")
    author = author if isinstance(author, str) else ""
    stated = _from_yaml(contents)
    if stated is not None:
        return stated, []
    buffers = _from_buffers(contents, form)
    if buffers is not None:
        # Detectron2's configs with deviation 1 begin with MSRA's weights; the others stride in the 3 x 3
        msra = buffers.order == "BGR" and all(abs(value - 1) < 1e-3 for value in buffers.std)
        return dataclasses.replace(buffers, stride_in_1x1=msra), []
    if seems_unnormalised(tensors):
        evidence = "by the magnitude of the first convolution, and as Detectron2's default config has it"
        return InputForm(order="BGR", mean=CAFFE_MEAN, std=ONES, stride_in_1x1=True, evidence=evidence), []
    if _CONVERTED.search(author) or contents.data.get("matching_heuristics"):
        return None, []
    return None, [
        "the file does not state whether its input is RGB or BGR, nor where its strides are: it is read as RGB, "
        "normalised by ImageNet's mean and deviation, with strides in the 3 x 3 convolutions; put the run's "
        "config.yaml into the file's folder to state it"
    ]


def _caffe2(tensors: Mapping[str, Tensor]) -> InputForm:
    """MSRA's ResNets; ResNeXt of Detectron's zoo has another deviation and strides in the 3 x 3."""
    middle = tensors.get("backbone.layer1.0.conv2.weight")
    grouped = middle is not None and middle.dim() == 4 and middle.shape[0] != middle.shape[1]
    evidence = "as Detectron2 uses Caffe2's weights"
    std = BGR_STD if grouped else ONES
    return InputForm(order="BGR", mean=CAFFE_MEAN, std=std, stride_in_1x1=not grouped, evidence=evidence)


def _from_buffers(contents: Contents, form: Form) -> InputForm | None:
    """The mean and the deviation that a network has as buffers and subtracts and divides by, next to its ResNet.

    `pixel_mean` and `pixel_std` of older Detectron2 models, `normalize.mean` and `normalize.std` of others; from 0 to
    255, or from 0 to 1. None where there are none, or several that differ.
    """
    pairs: dict[str, dict[str, str]] = {}
    for short, name in form.state.bare.items():
        match = _STATISTIC.fullmatch(short)
        if match and not _NO_INPUT.search(match[1]) and math.prod(shape_of(form.state.entries[name])) == 3:
            pairs.setdefault(match[1], {})[match[2]] = name
    stated: dict[tuple[float, ...], InputForm] = {}
    for start, names in pairs.items():
        if len(names) < 2:
            continue
        buffers, _ = tensors_in(contents, {kind: form.state.entries[name] for kind, name in names.items()})
        mean, std = (buffers[kind].flatten().double().tolist() for kind in ("mean", "std"))
        is_of_pixels = start.endswith("pixel_") and max(std) == 1  # Detectron2's deviation of 1
        if not is_of_pixels and max(mean) <= 1 and max(std) <= 1:
            if not any(mean) and set(std) == {1.0}:  # nothing is normalised here, perhaps elsewhere
                continue
            mean, std = ([255.0 * value for value in values] for values in (mean, std))
        normalisation = form_of_numbers(mean, std, None, f"{start}mean and {start}std in the file")
        if normalisation is not None:
            stated[(*mean, *std)] = normalisation
    return next(iter(stated.values())) if len(stated) == 1 else None


def _from_yaml(contents: Contents) -> InputForm | None:
    """The config.yaml that Detectron2 writes into the folder of a run."""
    text = text_in_folder(contents, "config.yaml")
    order, stride = (re.search(rf"^\s*{key}:\s*['\"]?(\w+)", text, re.MULTILINE) for key in ("FORMAT", "STRIDE_IN_1X1"))
    mean, std = (_yaml_list(text, key) for key in ("PIXEL_MEAN", "PIXEL_STD"))
    stated = form_of_numbers(mean, std, order and order[1], "config.yaml in its folder")
    if stated is None or stride is None:
        return None
    return dataclasses.replace(stated, stride_in_1x1=stride[1].lower() == "true")


def _yaml_list(text: str, key: str) -> list[float]:
    match = re.search(rf"^\s*{key}:\s*(?:\[([^\]]*)\]|((?:\n\s*-\s*\S+)+))", text, re.MULTILINE)
    return numbers_in(re.sub(r"(?m)^\s*-\s+", " ", match[1] or match[2])) if match else []


def _from_meta(contents: Contents) -> InputForm | None:
    """The config that MMDetection and related programs save as text in a file."""
    text = config_text(contents)
    mean, std = (re.search(rf"\b{name}{LIST}", text) for name in ("mean", "std"))
    if mean is None or std is None:
        return None
    switch = re.search(r"\b(?:bgr_)?to_rgb['\"]?\s*[=:]\s*(True|False)", text)
    order = None if switch is None else "RGB" if switch[1] == "True" else "BGR"
    stated = form_of_numbers(numbers_in(mean[1]), numbers_in(std[1]), order, "its config, in the file's meta")
    caffe = re.search(r"\bstyle['\"]?\s*[=:]\s*['\"]caffe", text)
    return stated and dataclasses.replace(stated, stride_in_1x1=caffe is not None)


def _from_config_json(contents: Contents) -> InputForm | None:
    """timm's mean and deviation, in config.json, from 0 to 1."""
    config = read_json(contents.path.parent / "config.json")
    if "model_type" in config and "architecture" not in config:  # transformers' wrapper of timm's networks has both
        return _from_transformers(contents, config)
    settings = config.get("pretrained_cfg")
    settings = settings if isinstance(settings, Mapping) else config
    return (
        _scaled(settings.get("mean"), settings.get("std"), "config.json in its folder")
        if "architecture" in config
        else None
    )


def _from_transformers(contents: Contents, config: Mapping[str, Any]) -> InputForm | None:
    """transformers' files next to its weights: preprocessor_config.json, and the place of a bottleneck's stride."""
    images = read_json(contents.path.parent / "preprocessor_config.json")
    stated = _scaled(images.get("image_mean"), images.get("image_std"), "preprocessor_config.json in its folder")
    if config.get("downsample_in_bottleneck") is not True:
        return stated
    complete = stated or _scaled(MEAN, STD, "")
    evidence = f"{stated.evidence} and config.json" if stated else "config.json in its folder"
    return complete and dataclasses.replace(complete, stride_in_1x1=True, evidence=evidence)


def _from_settings(contents: Contents) -> InputForm | None:
    """The mean and deviation, from 0 to 1, among the arguments in the checkpoints of timm's train.py."""
    for name, part in settings_in(contents):
        stated = _scaled(part.get("mean"), part.get("std"), f"the file's {name!r}")
        if stated is not None:
            return stated
    return None


def _scaled(mean: object, std: object, evidence: str) -> InputForm | None:
    """The input form of a mean and a deviation from 0 to 1; None for other values."""
    if not isinstance(mean, (list, tuple)) or not isinstance(std, (list, tuple)):
        return None
    numbers = [value for value in (*mean, *std) if isinstance(value, (int, float)) and 0 <= value <= 1]
    if len(numbers) != len(mean) + len(std):
        return None
    scaled = [255.0 * value for value in numbers]
    return form_of_numbers(scaled[: len(mean)], scaled[len(mean) :], "RGB", evidence)


def _warn_of_unstated(contents: Contents, tensors: Mapping[str, Tensor]) -> list[str]:
    if seems_unnormalised(tensors):
        return [
            "by the magnitude of its first convolution it takes pixel values from 0 to 255, as Caffe's ResNets (BGR, "
            "deviation 1, stride in the 1 x 1): it is read as if it took normalised RGB, and its features will be wrong"
        ]
    if re.search(r"caffe", contents.path.name, re.IGNORECASE):
        return [
            "its name contains Caffe, whose ResNets take BGR with deviation 1 and stride in the 1 x 1, and the file "
            "does not state its input: it is read as taking normalised RGB with strides in the 3 x 3"
        ]
    return []
