"""What a file without a ResNet contains, for a message."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from resim.exchange.networks.state_dicts import State


def describe_unknown(data: Mapping[str, object], states: Sequence[State]) -> str:
    """An example of the names in a file without a ResNet, the network that has similar names, and its top keys."""
    names = [name for state in states for name in state.entries]
    if any(re.fullmatch(r"blobs|conv1_w", name) for name in (*names, *data)):
        return "; it is a Caffe2 (Detectron 1) ResNet without the blobs of its blocks"
    if not names and "param_groups" in data:
        return f", but the state of an optimizer without its network (its keys are {_quoted(list(data))})"
    if not names:
        return f", and no tensors at all (its keys are {_quoted(list(data))})" if data else ", it is empty"
    example = f" (its names are like {min(names)!r})"
    labels = [state.label("") for state in states]
    kind = resembled(names)
    if all(name in _MOMENTS for name in names):
        kind = "the state of an optimizer without its network"
    resembles = f", which resembles {kind}" if kind else ""
    places = ", ".join(label or "its top" for label in labels[:4]) + (", ..." if len(labels) > 4 else "")
    entries = "1 entry" if len(names) == 1 else f"{len(names)} entries"
    return f"{example}{resembles}; {entries} below {places}; keys at its top: {_quoted(list(data))}"


def resembled(names: Sequence[str]) -> str:
    """The network whose names these resemble, for a message; "" where none is known."""
    return next((kind for pattern, kind in _OTHERS if any(re.search(pattern, name) for name in names)), "")


_MOMENTS = frozenset({"momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "step"})
_OTHERS = (
    (r"_?flat_param", "FSDP's flat parameters: save a full state_dict (StateDictType.FULL_STATE_DICT)"),
    (
        r"conv\d\.(weight_(orig|g|v|bar)$|parametrizations\.weight)",
        "a network with parametrised weights (pruning, weight norm, spectral norm): remove that before it is saved",
    ),
    (r"\.lora_[AB]\.|\.base_layer\.", "a network with LoRA adapters: merge them before it is saved"),
    (r"layer1\.0\.conv1\.0\.bias", "a ResNet with its norms folded into its convolutions, as for inference"),
    (r"\.weight_fake_quant\.|(^|\.)quant\.scale", "a network for integers: save its weights before quantisation"),
    (r"layer1\.0\.conv1\.0\.weight", "a ResNet for video"),
    (r"(^|\.)stage2\.\d\.branches\.", "an HRNet"),
    (r"(^|\.)attnpool\.", "CLIP's ResNet"),
    (
        r"(^|\.)(stem|conv1)\.[36]\.weight|(^|\.)stem\.conv[23]\.",
        "a ResNet with a deep stem (C, D, T)",
    ),
    (r"layers\.\d\.blocks\.\d+\.(attn|norm1)", "a Swin transformer"),
    (r"blocks\.\d+\.attn\.|encoder\.layer\.\d+\.attention|encoder_layer_\d", "a vision transformer"),
    (r"stages\.\d\.(blocks\.)?\d+\.(dwconv|conv_dw|depthwise_conv|gamma)", "a ConvNeXt"),
    (r"denseblock1", "a DenseNet"),
    (r"layer0\.(conv1|0)", "a squeeze-and-excitation ResNet of an old form"),
    (r"blocks\.\d+\.\d+\.conv_(pw|dw)|_blocks\.\d+\._depthwise", "an EfficientNet or MobileNet"),
    (r"stages\.\d\.blocks\.\d+\.(conv1|norm1)", "a ResNet v2 or RegNet"),
    (r"trunk_output\.block", "a RegNet"),
    (r"block\.\d\.\d\.weight", "a MobileNet or EfficientNet"),
    (r"features\.\d+\.weight", "a VGG, an AlexNet or a SqueezeNet"),
)


def _quoted(names: Sequence[str], at_most: int = 8) -> str:
    shown = ", ".join(repr(name) for name in names[:at_most])
    return shown + (f", ... {len(names)} in all" if len(names) > at_most else "")
