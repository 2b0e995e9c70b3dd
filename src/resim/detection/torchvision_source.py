"""A Python file that builds a detector from torchvision alone and loads its exported weights."""

from __future__ import annotations

from typing import Any

from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from resim.detection.checkpoint import TrainedDetector
from resim.detection.config import DetectorConfig, DetectRecipe
from resim.detection.detector import CANDIDATES, RATIOS
from resim.views.photometric import MEAN, STD

FIRST_LINE = '"""A detector in torchvision, written by resim export.'

_HEAD = '''{first_line}

{what}; it needs {needs}.

    import runpy
    model = runpy.run_path("THIS FILE")["load_detector"]()
    detections = model([image])[0]  # image: (3, height, width), RGB in [0, 1], of any size

detections has boxes (x0, y0, x1, y1) in px of the image, scores, and labels: label n is CLASSES[n - 1].
"""

{imports}

CLASSES = {classes}
CATEGORY_IDS = {category_ids}  # of the data set that it was trained on
KEYPOINTS = {keypoints}
WEIGHTS = {weights}  # in the folder of this file


def build_detector():
    """The detector with new weights. Of min_size one is taken in training, the last in evaluation."""
    norm = {norm}
    network = torchvision.models.get_model({backbone}, weights=None, norm_layer=norm)
'''

_FPN = """    backbone = BackboneWithFPN(
        network,
        return_layers={{"layer1": "0", "layer2": "1", "layer3": "2", "layer4": "3"}},
        in_channels_list={channels},
        out_channels={width},
        norm_layer={fpn_norm},
    )
    return {kind}(
        backbone,
        num_classes={num_classes},
"""

_C4 = """    backbone = torch.nn.Sequential(OrderedDict(body=IntermediateLayerGetter(network, {{"layer3": "0"}})))
    backbone.out_channels = {c4}
    fifth_stage = OrderedDict(
        layer4=network.layer4, norm=norm({c5}), pool=torch.nn.AdaptiveAvgPool2d(1), flatten=torch.nn.Flatten()
    )
    return {kind}(
        backbone,
        box_roi_pool=MultiScaleRoIAlign(["0"], output_size=14, sampling_ratio=2),
        box_head=torch.nn.Sequential(fifth_stage),
        box_predictor=FastRCNNPredictor({c5}, {num_classes}),
"""

_C4_MASKS = """        mask_roi_pool=MultiScaleRoIAlign(["0"], output_size=14, sampling_ratio=2),
        mask_head=torch.nn.Identity(),  # the box head's layers, which load_detector puts here
        mask_predictor=MaskRCNNPredictor({c5}, 256, {num_classes}),
"""

_LOAD = '''    )


def load_detector(path=Path(__file__).with_name(WEIGHTS)):
    """The trained detector, in evaluation mode."""
    model = build_detector()
    model.load_state_dict({read})
{share}    return model.eval()
'''

_SHARE = """    box_head = model.roi_heads.box_head
    model.roi_heads.mask_head = torch.nn.Sequential(box_head.layer4, box_head.norm)
"""


def torchvision_source(detector: TrainedDetector, recipe: DetectRecipe, weights_name: str) -> str:
    """The source of the Python file.

    Args:
        detector: whose classes it has.
        recipe: of the exported weights, which may differ from the detector's in the FPN's norms.
        weights_name: name of the file of weights in the same folder.
    """
    config, classes = recipe.detector, len(detector.classes) + 1
    safe = weights_name.endswith(".safetensors")
    state = 'torch.load(path, map_location="cpu", weights_only=True)["state_dict"]'
    norm = "FrozenBatchNorm2d" if config.norm == "frozen" else "torch.nn.BatchNorm2d"
    kind = "MaskRCNN" if config.masks else "KeypointRCNN" if config.keypoints else "FasterRCNN"
    top = _top_channels(detector.model, c4=config.neck == "c4")
    values = {
        "first_line": FIRST_LINE,
        "what": f"{kind} on {config.backbone} with {'an FPN' if config.neck == 'fpn' else 'boxes on C4'}",
        "imports": _imports(config, kind, safe=safe),
        "needs": "torch, torchvision and safetensors" if safe else "torch and torchvision",
        "classes": ascii(list(detector.classes)),
        "category_ids": ascii(list(detector.category_ids)),
        "keypoints": ascii(list(detector.keypoint_names)),
        "weights": ascii(weights_name),
        "norm": norm,
        "backbone": ascii(config.backbone),
        "channels": [top // 8, top // 4, top // 2, top],
        "width": config.fpn_width,
        "fpn_norm": "norm" if config.fpn_norm else "None",
        "kind": kind,
        "num_classes": classes,
        "c4": top // 2,
        "c5": top,
        "read": "safetensors.torch.load_file(path)" if safe else state,
        "share": _SHARE if config.neck == "c4" and config.masks else "",
    }
    parts = [_HEAD, _FPN] if config.neck == "fpn" else [_HEAD, _C4, *([_C4_MASKS] if config.masks else [])]
    text = "".join(part.format(**values) for part in parts)
    text += "".join(f"        {name}={value},\n" for name, value in _settings(detector, recipe).items())
    text += _LOAD.format(**values)
    return text


def _imports(config: DetectorConfig, kind: str, *, safe: bool) -> str:
    """The import statements that the file needs."""
    c4 = config.neck == "c4"
    needed = {
        "from collections import OrderedDict": c4,
        "from pathlib import Path\n": True,
        "import safetensors.torch": safe,
        "import torch": True,
        "import torchvision": True,
        "from torchvision.models._utils import IntermediateLayerGetter": c4,
        f"from torchvision.models.detection import {kind}": True,
        "from torchvision.models.detection.anchor_utils import AnchorGenerator": True,
        "from torchvision.models.detection.backbone_utils import BackboneWithFPN": not c4,
        "from torchvision.models.detection.faster_rcnn import FastRCNNPredictor": c4,
        "from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor": c4 and config.masks,
        "from torchvision.ops import FrozenBatchNorm2d": config.norm == "frozen",
        "from torchvision.ops import MultiScaleRoIAlign": c4,
    }
    return "\n".join(line for line, is_needed in needed.items() if is_needed)


def _settings(detector: TrainedDetector, recipe: DetectRecipe) -> dict[str, str]:
    """Arguments of torchvision's detectors that both necks have."""
    config, images = recipe.detector, recipe.images
    fpn = config.neck == "fpn"
    sizes = tuple((size,) for size in config.anchor_sizes) if fpn else (config.anchor_sizes,)
    candidates = CANDIDATES[config.neck]
    settings: dict[str, Any] = {
        "min_size": (*images.min_sizes, images.test_size),
        "max_size": images.max_size,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "rpn_pre_nms_top_n_train": config.candidates_train or candidates[0],
        "rpn_pre_nms_top_n_test": config.candidates_test or candidates[1],
        "rpn_post_nms_top_n_train": config.proposals_train,
        "rpn_post_nms_top_n_test": config.proposals_test,
        "rpn_batch_size_per_image": config.rpn_regions,
        "box_batch_size_per_image": config.box_regions,
        "box_score_thresh": config.score_threshold,
        "box_detections_per_img": config.detections,
    }
    anchors = f"AnchorGenerator(sizes={sizes!r}, aspect_ratios={(RATIOS,) * len(sizes)!r})"
    more = {"num_keypoints": repr(len(detector.keypoint_names))} if config.keypoints else {}
    return {**more, **{name: repr(value) for name, value in settings.items()}, "rpn_anchor_generator": anchors}


def _top_channels(model: GeneralizedRCNN, *, c4: bool) -> int:
    """Channels of C5."""
    parts: Any = model
    if c4:
        return parts.roi_heads.box_predictor.cls_score.in_features
    return parts.backbone.fpn.inner_blocks[3][0].in_channels
