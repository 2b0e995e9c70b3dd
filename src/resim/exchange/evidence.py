"""What a file says of the network that it holds beyond names and shapes: its input, its strides, its architecture.

Names and shapes do not tell BGR from RGB, a stride in the 1 x 1 from one in the 3 x 3, or a blurred stride from a plain
one. Other evidence does: buffers, a config in the file or in its folder, a program's signature, the weights' magnitude.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from resim.errors import UserError
from resim.exchange.files import Contents, tensors_in
from resim.exchange.inert import PassedOver
from resim.exchange.inputs import (
    BGR_STD,
    CAFFE_MEAN,
    ONES,
    InputForm,
    form_of_numbers,
    numbers_in,
    seems_unnormalised,
)
from resim.exchange.recognise import Form

_OTHER_STRIDES = re.compile(r"\w*res(?:net|next)\d*(?:blur|aa)\d+\w*", re.IGNORECASE)
_ARCHITECTURE = ("architecture", "arch", "model", "model_name", "backbone", "name")
_CONVERTED = re.compile(r"moco|resim|torchvision", re.IGNORECASE)
_LIST = r"['\"]?\s*[=:]\s*[\[(]([^\])]*)[\])]"


def input_of(contents: Contents, form: Form, tensors: Mapping[str, Tensor]) -> tuple[InputForm | None, list[str]]:
    """What the network takes, where the file says so, and warnings of what it does not say.

    None: nothing says that it is another form than ours.
    """
    bottleneck = "backbone.layer1.0.conv3.weight" in tensors
    if form.name == "caffe2":
        return _caffe2(tensors), []
    found = _from_meta(contents) or _from_config_json(contents)
    if form.name == "detectron2":
        found, warnings = _detectron2(contents, form, tensors)
    else:
        silent = found is None and form.name in ("resnet", "mmdet")  # the other programs take RGB as ours does
        warnings = _unstated(contents, tensors) if silent else []
    if found is not None and not bottleneck:
        found = dataclasses.replace(found, stride_in_1x1=False)
    warnings += _dilation(contents, form)
    return (None if found is not None and found.is_ours and not found.stride_in_1x1 else found), warnings


def refuse_other_strides(contents: Contents) -> None:
    """Refuse timm's networks that blur or average where a plain ResNet strides: same names and shapes, other features.

    Raises:
        UserError: the config.json in the file's folder, the file's own arguments or its name say that it is one.
    """
    config = _json_of(contents.path.parent / "config.json")
    sources = [("config.json", config), ("its metadata", contents.metadata), ("the file", contents.data)]
    sources += [(f"the file's {name!r}", part) for name, part in _settings(contents)]
    stated = [(where, str(value)) for where, part in sources for value in _texts(part, _ARCHITECTURE)]
    for where, text in [*stated, *([] if stated else [("its name", contents.path.name)])]:
        match = _OTHER_STRIDES.search(text)
        if match:
            raise UserError(
                f"{contents.path}: is a {match[0]} ({where} says so), which blurs or averages where it strides: the "
                "same weights give other features in a plain ResNet; --backbone timm/NAME trains such a network"
            )


def _detectron2(contents: Contents, form: Form, tensors: Mapping[str, Tensor]) -> tuple[InputForm | None, list[str]]:
    author = contents.data.get("__author__")
    author = author if isinstance(author, str) else ""
    stated = _from_yaml(contents)
    if stated is not None:
        return stated, []
    found = _from_buffers(contents, form)
    if found is not None:
        # of Detectron2's own configs those with deviation 1 begin with MSRA's weights, the others stride in the 3 x 3
        msra = found.order == "BGR" and all(abs(value - 1) < 1e-3 for value in found.std)
        return dataclasses.replace(found, stride_in_1x1=msra), []
    if seems_unnormalised(tensors):
        evidence = "by the magnitude of the first convolution, and as Detectron2's default config has it"
        return InputForm(order="BGR", mean=CAFFE_MEAN, std=ONES, stride_in_1x1=True, evidence=evidence), []
    if _CONVERTED.search(author) or contents.data.get("matching_heuristics"):
        return None, []
    return None, [
        "the file does not say whether its input is RGB or BGR, nor where its strides are: it is read as RGB, "
        "normalised by ImageNet's mean and deviation, with strides in the 3 x 3 convolutions; the run's config.yaml in "
        "the file's folder would say it"
    ]


def _caffe2(tensors: Mapping[str, Tensor]) -> InputForm:
    """MSRA's ResNets; ResNeXt of Detectron's zoo has another deviation and strides in the 3 x 3."""
    middle = tensors.get("backbone.layer1.0.conv2.weight")
    grouped = middle is not None and middle.dim() == 4 and middle.shape[0] != middle.shape[1]
    evidence = "as Detectron2 uses Caffe2's weights"
    std = BGR_STD if grouped else ONES
    return InputForm(order="BGR", mean=CAFFE_MEAN, std=std, stride_in_1x1=not grouped, evidence=evidence)


def _from_buffers(contents: Contents, form: Form) -> InputForm | None:
    """`pixel_mean` and `pixel_std`, which Detectron2's models kept among their buffers."""
    wanted = {
        short.rpartition(".")[2]: name
        for short, name in form.state.bare.items()
        if short.rpartition(".")[2] in ("pixel_mean", "pixel_std")
    }
    if len(wanted) != 2:
        return None
    found, _ = tensors_in(contents, {kind: form.state.entries[name] for kind, name in wanted.items()})
    if len(found) != 2:
        return None
    mean, std = (found[kind].flatten().double().tolist() for kind in ("pixel_mean", "pixel_std"))
    return form_of_numbers(mean, std, None, "pixel_mean and pixel_std in the file")


def _from_yaml(contents: Contents) -> InputForm | None:
    """The config.yaml that Detectron2 writes into the folder of a run."""
    try:
        text = (contents.path.parent / "config.yaml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    order, stride = (re.search(rf"^\s*{key}:\s*['\"]?(\w+)", text, re.MULTILINE) for key in ("FORMAT", "STRIDE_IN_1X1"))
    mean, std = (_yaml_list(text, key) for key in ("PIXEL_MEAN", "PIXEL_STD"))
    found = form_of_numbers(mean, std, order and order[1], "config.yaml in its folder")
    if found is None or stride is None:
        return None
    return dataclasses.replace(found, stride_in_1x1=stride[1].lower() == "true")


def _yaml_list(text: str, key: str) -> list[float]:
    match = re.search(rf"^\s*{key}:\s*(?:\[([^\]]*)\]|((?:\n\s*-\s*\S+)+))", text, re.MULTILINE)
    return numbers_in(re.sub(r"(?m)^\s*-\s+", " ", match[1] or match[2])) if match else []


def _from_meta(contents: Contents) -> InputForm | None:
    """The config that MMDetection and its kin keep as text in a file."""
    meta = contents.data.get("meta")
    texts = [value for value in meta.values() if isinstance(value, str)] if isinstance(meta, Mapping) else []
    text = next((value for value in texts if re.search(r"\bmean" + _LIST, value)), "")
    mean, std = (re.search(rf"\b{name}{_LIST}", text) for name in ("mean", "std"))
    if mean is None or std is None:
        return None
    switch = re.search(r"\b(?:bgr_)?to_rgb['\"]?\s*[=:]\s*(True|False)", text)
    order = None if switch is None else "RGB" if switch[1] == "True" else "BGR"
    found = form_of_numbers(numbers_in(mean[1]), numbers_in(std[1]), order, "its config, in the file's meta")
    caffe = re.search(r"\bstyle['\"]?\s*[=:]\s*['\"]caffe", text)
    return found and dataclasses.replace(found, stride_in_1x1=caffe is not None)


def _from_config_json(contents: Contents) -> InputForm | None:
    """timm's mean and deviation, in config.json, from 0 to 1."""
    config = _json_of(contents.path.parent / "config.json")
    own = config.get("pretrained_cfg")
    own = own if isinstance(own, Mapping) else config
    mean, std = (own.get(name) for name in ("mean", "std"))
    if "architecture" not in config or not isinstance(mean, list) or not isinstance(std, list):
        return None
    numbers = [*mean, *std]
    if not all(isinstance(value, (int, float)) for value in numbers):
        return None
    scaled = [255.0 * value for value in numbers]
    return form_of_numbers(scaled[: len(mean)], scaled[len(mean) :], "RGB", "config.json in its folder")


def _unstated(contents: Contents, tensors: Mapping[str, Tensor]) -> list[str]:
    if seems_unnormalised(tensors):
        return [
            "by the magnitude of its first convolution it takes pixel values from 0 to 255, as Caffe's ResNets (BGR, "
            "deviation 1, stride in the 1 x 1): it is read as if it took normalised RGB, and its features will be wrong"
        ]
    if re.search(r"caffe", contents.path.name, re.IGNORECASE):
        return [
            "its name says Caffe, whose ResNets take BGR with deviation 1 and stride in the 1 x 1, and nothing in it "
            "says more: it is read as taking normalised RGB with strides in the 3 x 3"
        ]
    return []


def _dilation(contents: Contents, form: Form) -> list[str]:
    for name, part in _settings(contents):
        if any(part.get(key) is True for key in ("dilation", "dc5")):
            return [f"its {name} say that its last stage is dilated; it is read with strides, and C5 will differ"]
    segmenter = re.compile(r"(classifier\.\d\.convs|decode_head|aux_classifier)\.")
    if any(segmenter.match(short) for short in form.state.bare):
        return ["it is of a segmentation network, whose last stages are usually dilated; it is read with strides"]
    return []


def _settings(contents: Contents) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Arguments and settings in a file, of whatever class they were."""
    for name in ("args", "opt", "hyper_parameters", "hparams", "cfg", "config"):
        part = contents.data.get(name)
        if isinstance(part, PassedOver):
            yield name, part.entries()
        elif isinstance(part, Mapping):
            yield name, {key: value for key, value in part.items() if isinstance(key, str)}


def _texts(part: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    return [value for name in names if isinstance(value := part.get(name), str)]


def _json_of(path: Path) -> Mapping[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        config = json.loads(path.read_text(encoding="utf-8"))
        return config if isinstance(config, dict) else {}
    return {}
