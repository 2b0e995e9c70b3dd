"""Networks with a ResNet's names and shapes but other strides, dilation or extra modules, by what the file states."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from resim.errors import UserError
from resim.exchange.files.contents import Contents
from resim.exchange.files.pickle_values import shape_of
from resim.exchange.networks.recognise import Form
from resim.exchange.networks.settings import all_settings, config_text, read_json, text_in_folder

_OTHER_STRIDES = re.compile(r"\w*res(?:net|next)\d*(?:blur|aa)\d+\w*", re.IGNORECASE)
_ARCHITECTURE = ("architecture", "arch", "model", "model_name", "backbone", "name")
_DILATED = ("dilation", "dc5", "dilated", "replace_stride_with_dilation")
_STRIDES = re.compile(r"\bstrides['\"]?\s*[=:]\s*[\[(](\s*1(?:\s*,\s*[12]){3})\s*,?\s*[\])]")  # of the four stages
_SEGMENTER = re.compile(r"(^|\.)((classifier|decoder)\.\d\.convs|decode_head|aux_classifier|aspp|ppm|psp|fpa)\.")
_BETWEEN = re.compile(r"((?:bam|cbam|non_?local|nl|attn|attention|eca|gc|blur\w*|maxpool)_?\d*)\.", re.IGNORECASE)


def refuse_other_strides(contents: Contents) -> None:
    """Refuse networks that blur, average or stride in other places than a plain ResNet: same names, other features.

    Raises:
        UserError: the config.json in the folder, the arguments in the file or its name show such a network.
    """
    config = read_json(contents.path.parent / "config.json")
    blurs = [where for where, part in all_settings(contents) if _says_blur(part)]
    if blurs:
        raise UserError(
            f"{contents.path}: blurs or averages where it strides ({blurs[0]} sets aa_layer): the same weights give "
            "other features in a plain ResNet, and are not read"
        )
    if config.get("model_type") == "resnet" and config.get("downsample_in_first_stage") is True:
        raise UserError(
            f"{contents.path}: strides in its first stage (config.json sets downsample_in_first_stage), unlike "
            "torchvision's ResNets, and is not read"
        )
    sources = [("its metadata", contents.metadata), ("the file", contents.data), *all_settings(contents)]
    stated = [(where, str(value)) for where, part in sources for value in _texts(part, _ARCHITECTURE)]
    for where, text in [*stated, *([] if stated else [("its name", contents.path.name)])]:
        match = _OTHER_STRIDES.search(text)
        if match:
            raise UserError(
                f"{contents.path}: is a {match[0]} (by {where}), which blurs or averages where it strides: the "
                "same weights give other features in a plain ResNet; --backbone timm/NAME trains such a network"
            )


def _says_blur(part: Mapping[str, Any]) -> bool:
    layer = part.get("aa_layer")
    return bool(layer) and layer != "none"


def _texts(part: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    return [value for name in names if isinstance(value := part.get(name), str)]


def warn_of_dilation(contents: Contents, form: Form) -> list[str]:
    """A warning of stages with dilation in place of strides, as in segmentation networks and DC5 detectors."""
    consequence = "it is read with strides, and its last maps will differ"
    for name, part in all_settings(contents):
        if any(_is_set(part.get(key)) for key in _DILATED) or part.get("output_stride") in (8, 16):
            return [f"it has dilated stages in place of strides (by {name}); {consequence}"]
        if part.get("last_stride") == 1:
            return [f"its last stage has no stride (by {name}); {consequence}"]
    text = text_in_folder(contents, "config.yaml") if form.name == "detectron2" else config_text(contents)
    if re.search(r"RES5_DILATION:\s*[2-9]|\bdilations['\"]?\s*[=:]\s*[\[(][^\])]*[2-9]", text):
        return [f"it has dilated stages in place of strides (by its config); {consequence}"]
    strides = _STRIDES.search(text)
    if strides and re.sub(r"\D", "", strides[1]) != "1222":
        return [f"its stages have the strides {strides[1]} (by its config); {consequence}"]
    shapes = {short: shape_of(form.state.entries[name]) for short, name in form.state.bare.items()}
    if any(_SEGMENTER.search(short) or _is_fcn(short, shape) for short, shape in shapes.items()):
        return ["it is a segmentation network, whose last stages are usually dilated; it is read with strides"]
    return []


def _is_set(value: object) -> bool:
    """Whether a switch is on, for all stages or for one of them."""
    return value is True or (isinstance(value, (list, tuple)) and any(part is True for part in value))


def _is_fcn(short: str, shape: tuple[int, ...]) -> bool:
    """Whether it is the first convolution of torchvision's FCN; a classifier with the same name is linear."""
    return short.endswith("classifier.0.weight") and len(shape) == 4


def warn_of_extra_modules(form: Form) -> list[str]:
    """A warning of modules that, by their names, may be between the stages."""
    prefix = form.network.prefix
    names = [short.removeprefix(prefix) for short in form.state.bare if short.startswith(prefix)]
    modules = ", ".join(dict.fromkeys(match[1] for match in map(_BETWEEN.match, names) if match))
    if not modules:
        return []
    return [f"it has {modules} too, unlike a plain ResNet: if they are between its stages, its features differ"]
