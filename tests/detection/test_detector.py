"""Detectors: torchvision's own to the last bit, C4 with its box head, stages that stay fixed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d

from resim.detection.config import DetectorConfig, ImagesConfig
from resim.detection.detector import build_detector, freeze_stages
from resim.detection.torchvision_patches import set_sizes_and_seeds
from resim.errors import UserError
from tiny_detectors import randomise_norms, tiny, tiny_images

KINDS: dict[str, Any] = {
    "fasterrcnn_resnet50_fpn": (FasterRCNN, {}, 91),
    "maskrcnn_resnet50_fpn": (MaskRCNN, {"masks": True}, 91),
    "keypointrcnn_resnet50_fpn": (KeypointRCNN, {"keypoints": True}, 2),
}
KEYPOINTS = 17
FEW = {
    "rpn_post_nms_top_n_train": 60, "rpn_post_nms_top_n_test": 40, "rpn_batch_size_per_image": 32,
    "box_batch_size_per_image": 16, "box_detections_per_img": 12, "box_score_thresh": 0.0,
}  # fmt: skip
OUR_FEW: dict[str, Any] = {
    "proposals_train": 60, "proposals_test": 40, "rpn_regions": 32, "box_regions": 16, "detections": 12,
    "score_threshold": 0.0,
}  # fmt: skip


def photos() -> list[Tensor]:
    """An image that lies and one that stands."""
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, 64, 96, generator=generator), torch.rand(3, 90, 60, generator=generator)]


def targets() -> list[dict[str, Tensor]]:
    """Two objects and one, with masks and keypoints."""
    made = []
    for boxes, size in (([[4, 6, 50, 40], [30, 20, 90, 60]], (64, 96)), ([[10, 10, 50, 80]], (90, 60))):
        masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
        points = torch.zeros(len(boxes), KEYPOINTS, 3)
        for number, (x0, y0, x1, y1) in enumerate(boxes):
            masks[number, y0:y1, x0:x1] = 1
            points[number, :, 0] = torch.linspace(x0 + 1, x1 - 1, KEYPOINTS)
            points[number, :, 1] = torch.linspace(y0 + 1, y1 - 1, KEYPOINTS)
            points[number, ::2, 2] = 2
        labels = torch.ones(len(boxes), dtype=torch.int64)
        made.append({"boxes": torch.tensor(boxes).float(), "labels": labels, "masks": masks, "keypoints": points})
    return made


def ours_like(kind: str, theirs: nn.Module, **fields: Any) -> Any:
    """Our detector with the state of torchvision's."""
    _, task, classes = KINDS[kind]
    config = DetectorConfig(backbone="resnet50", norm="frozen", fpn_norm=False, **(task | fields))
    images = ImagesConfig(min_sizes=(64,), max_size=128, test_size=64)
    model = build_detector(
        config, images, num_classes=classes - 1, num_keypoints=KEYPOINTS if config.keypoints else 0, seed=4
    )
    assert str(model.load_state_dict(theirs.state_dict(), strict=True)) == "<All keys matched successfully>"
    return model


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_given_torchvisions_weights_it_detects_and_learns_as_torchvisions(kind: str) -> None:
    # as torchvision builds it from pre-trained weights, with fixed BatchNorm and three trained stages
    build, _, classes = KINDS[kind]
    torch.manual_seed(0)
    network: Any = torchvision.models.resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    theirs: Any = build(_resnet_fpn_extractor(network, 3), classes, min_size=64, max_size=128, **FEW)
    randomise_norms(theirs)
    ours = ours_like(kind, theirs, **OUR_FEW)
    freeze_stages(ours, 2)
    trained = {name for name, parameter in theirs.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in ours.named_parameters() if parameter.requires_grad} == trained

    with torch.no_grad():
        expected, result = theirs.eval()(photos()), ours.eval()(photos())
    for one, other in zip(result, expected, strict=True):
        assert len(one["boxes"]) == 12
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)

    losses = []
    for model in (theirs.train(), ours.train()):
        torch.manual_seed(7)
        losses.append(model(photos(), targets()))
    assert losses[0].keys() == losses[1].keys()
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])
    assert all(value > 0 for value in losses[0].values())
    for one in losses:
        torch.stack(list(one.values())).sum().backward()
    parameters = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        assert (parameter.grad is None) == (name not in trained)
        if parameter.grad is not None:
            assert torch.equal(parameter.grad, parameters[name].grad), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_the_weights_of_torchvisions_functions_fit(kind: str) -> None:
    theirs: Any = torchvision.models.get_model(kind, weights=None, weights_backbone=None, min_size=64, max_size=128)
    ours = ours_like(kind, theirs)
    with torch.no_grad():  # in evaluation BatchNorm and fixed BatchNorm are the same
        expected, result = theirs.eval().backbone(photos()[0][None]), ours.eval().backbone(photos()[0][None])
    assert list(result) == list(expected) == ["0", "1", "2", "3", "pool"]
    for name, value in expected.items():
        assert (result[name] - value).norm() <= 1e-5 * value.norm()


def settings(model: Any) -> dict[str, Any]:
    """All that decides proposals, matching, sampling and detections, except the weights."""
    rpn, heads = model.rpn, model.roi_heads
    return {
        "anchors": (rpn.anchor_generator.sizes, rpn.anchor_generator.aspect_ratios),
        "transform": (
            model.transform.min_size, model.transform.max_size, model.transform.image_mean, model.transform.image_std,
            model.transform.size_divisible,
        ),
        "proposals": (rpn._pre_nms_top_n, rpn._post_nms_top_n, rpn.nms_thresh, rpn.score_thresh, rpn.min_size),
        "matching": [
            (m.high_threshold, m.low_threshold, m.allow_low_quality_matches)
            for m in (rpn.proposal_matcher, heads.proposal_matcher)
        ],
        "sampling": [
            (s.batch_size_per_image, s.positive_fraction) for s in (rpn.fg_bg_sampler, heads.fg_bg_sampler)
        ],
        "boxes": (rpn.box_coder.weights, heads.box_coder.weights),
        "detections": (heads.score_thresh, heads.nms_thresh, heads.detections_per_img),
        "pooling": [
            None if pool is None else (pool.featmap_names, pool.output_size, pool.sampling_ratio)
            for pool in (heads.box_roi_pool, heads.mask_roi_pool, heads.keypoint_roi_pool)
        ],
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_what_is_not_set_is_torchvisions(kind: str) -> None:
    theirs = settings(torchvision.models.get_model(kind, weights=None, weights_backbone=None))
    config = DetectorConfig(backbone="resnet50", proposals_train=2000, **KINDS[kind][1])
    images = ImagesConfig(min_sizes=(800,))
    ours = settings(build_detector(config, images, num_classes=KINDS[kind][2] - 1, num_keypoints=KEYPOINTS))
    sizes, *rest = ours.pop("transform")
    assert (sizes[-1], *rest) == ((theirs["transform"][0][-1]), *theirs.pop("transform")[1:])
    assert ours == theirs


# -- C4


@pytest.mark.slow
@pytest.mark.parametrize("masks", [False, True])
def test_on_c4_the_fifth_stage_is_the_box_head(masks: bool) -> None:
    model: Any = build_detector(tiny(neck="c4", masks=masks, score_threshold=0.0), tiny_images(), num_classes=3, seed=1)
    names = set(model.state_dict())
    assert not any(name.startswith("backbone.body.layer4") for name in names)
    assert {name.split(".")[2] for name in names if name.startswith("roi_heads.box_head.")} == {"layer4", "norm"}
    assert not any(name.startswith("roi_heads.mask_head") for name in names)  # its layers are the box head's
    with torch.no_grad():
        maps = model.backbone(torch.rand(1, 3, 64, 96))
    assert {name: tuple(value.shape) for name, value in maps.items()} == {"0": (1, 64, 4, 6)}
    regions = torch.rand(2, 64, 14, 14)
    head = model.roi_heads.box_head.eval()
    with torch.no_grad():
        by_hand = head.norm(head.layer4(regions)).mean((2, 3))
        assert torch.equal(head(regions), by_hand)
    assert by_hand.shape == (2, 128)
    assert model.rpn.anchor_generator.num_anchors_per_location() == [15]
    with torch.no_grad():
        result = model.eval()(photos())
    assert all(len(one["boxes"]) for one in result)
    assert all(("masks" in one) == masks for one in result)
    learnt = model.train()(photos(), targets())
    assert ("loss_mask" in learnt) == masks
    torch.stack(list(learnt.values())).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_on_c4_masks_are_seen_in_the_box_heads_maps(training: bool) -> None:
    config = tiny(neck="c4", masks=True, norm="frozen", score_threshold=0.0, detections=3)
    model: Any = build_detector(config, tiny_images(), num_classes=1, seed=1)
    randomise_norms(model)
    calls: list[Any] = []
    model.roi_heads.mask_roi_pool.register_forward_hook(lambda module, inputs, maps: calls.append((inputs, maps)))
    set_sizes_and_seeds(model, [64, 80], [1, 2])
    model.train(training)(photos(), targets() if training else None)
    (((maps, boxes, sizes), result),) = calls
    assert sum(map(len, boxes)) == len(result) > 2
    with torch.no_grad():  # fixed BatchNorm: each region's map is its own, whatever it was computed with
        pool = torchvision.ops.MultiScaleRoIAlign(["0"], output_size=14, sampling_ratio=2)
        expected = model.roi_heads.box_head.maps(pool(maps, boxes, sizes))
    assert torch.allclose(result, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.slow
def test_on_c4_a_step_of_mask_rcnn_updates_the_statistics_of_the_fifth_stage_once() -> None:
    for masks in (False, True):
        model: Any = build_detector(tiny(neck="c4", masks=masks), tiny_images(), num_classes=1, seed=1).train()
        set_sizes_and_seeds(model, [64, 80], [1, 2])
        model(photos(), targets())
        assert model.roi_heads.box_head.last is None  # nothing is kept from one step to the next
    counters = {n: int(v) for n, v in model.state_dict().items() if n.endswith("num_batches_tracked")}
    assert any(name.startswith("roi_heads.box_head.") for name in counters)
    assert set(counters.values()) == {1}


# -- what is refused, what a seed decides


def test_new_weights_are_those_of_the_seed_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, same, other = (
        build_detector(tiny(), tiny_images(), num_classes=2, seed=seed).state_dict() for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["backbone.body.conv1.weight"], other["backbone.body.conv1.weight"])
    assert not torch.equal(one["rpn.head.conv.0.0.weight"], other["rpn.head.conv.0.0.weight"])


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("timm/resnet18", "backbone 'timm/resnet18': a detector needs a torchvision ResNet, such as resnet50"),
        ("auto", "backbone 'auto': a detector needs a torchvision ResNet"),
        ("vgg16", "no backbone 'vgg16': one of resnet101"),
    ],
)
def test_a_backbone_that_is_none(backbone: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_detector(tiny(backbone=backbone), tiny_images(), num_classes=2)


# -- stages that stay fixed


@pytest.mark.slow
@pytest.mark.parametrize("neck", ["fpn", "c4"])
@pytest.mark.parametrize("stages", [0, 1, 2, 5])
def test_frozen_stages_get_no_gradient_and_keep_their_statistics(neck: Any, stages: int) -> None:
    model: Any = build_detector(tiny(neck=neck), tiny_images(), num_classes=2, seed=1)
    randomise_norms(model)
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        maps = model.backbone(photos()[0][None])
    freeze_stages(model, stages)
    with torch.no_grad():
        again = model.backbone(photos()[0][None])
    for name, value in maps.items():
        assert (again[name] - value).norm() <= 1e-5 * value.norm()

    set_sizes_and_seeds(model, [64, 80], [1, 2])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    torch.stack(list(model.train()(photos(), targets()).values())).sum().backward()
    parts = [("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)]
    fixed = {name for names in parts[:stages] for name in names}

    def is_fixed(name: str) -> bool:
        return any(name.startswith((f"backbone.body.{p}.", f"roi_heads.box_head.{p}.")) for p in fixed)

    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == is_fixed(name), name
    optimizer.step()
    after = model.state_dict()
    assert set(before) - set(after) == {n for n in before if is_fixed(n) and n.endswith("num_batches_tracked")}
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert not any(is_fixed(name) for name in moved)
    statistics = {name for name in after if "running_" in name and not is_fixed(name)}
    assert statistics <= moved
