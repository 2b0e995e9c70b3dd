"""What is drawn belongs to the image, wherever it stands in the batch; both smooth L1 losses have any beta."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from resim.detection.detector import build_detector
from resim.detection.recipes import DETECT_RECIPES
from resim.detection.torchvision_patches import BetaRoIHeads, BetaRPN, ChosenSizes, SeededSampler, set_sizes_and_seeds
from resim.exchange.detectron2.launcher import find_config
from tiny_detectors import tiny, tiny_images


def matched(seed: int) -> Tensor:
    """Regions of an image as the matcher leaves them: 1 an object, 0 background, -1 neither."""
    return torch.randint(-1, 2, (300,), generator=torch.Generator().manual_seed(seed))


def test_sampled_regions_are_a_function_of_the_image() -> None:
    sampler = SeededSampler(64, 0.5, stream=1)
    sampler.seeds = [11, 12, 13]
    positives, negatives = sampler([matched(0), matched(1), matched(2)])
    sampler.seeds = [13, 11]
    again, background = sampler([matched(2), matched(0)])
    assert torch.equal(again[0], positives[2])
    assert torch.equal(again[1], positives[0])
    assert torch.equal(background[0], negatives[2])
    assert torch.equal(background[1], negatives[0])
    for one, other in zip(positives, negatives, strict=True):
        assert (int(one.sum()), int(other.sum())) == (32, 32)
    assert not torch.equal(positives[0], sampler([matched(0), matched(0)])[0][0])  # another seed, another draw


def test_the_two_samplers_draw_apart_and_leave_the_global_generator_alone() -> None:
    first, second = SeededSampler(64, 0.5, stream=1), SeededSampler(64, 0.5, stream=2)
    first.seeds = second.seeds = [11]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert not torch.equal(first([matched(0)])[0][0], second([matched(0)])[0][0])
    assert torch.equal(torch.get_rng_state(), before)
    first.seeds = [2**63 - 1]  # no seed is too large
    first([matched(0)])


def test_without_seeds_the_sampler_is_torchvisions() -> None:
    batch = [matched(0), matched(1)]
    torch.manual_seed(3)
    expected = BalancedPositiveNegativeSampler(64, 0.25)(batch)
    torch.manual_seed(3)
    result = SeededSampler(64, 0.25, stream=1)(batch)
    for one, other in zip(result, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_images_are_resized_to_the_side_that_was_drawn_for_each() -> None:
    sizes: Any = [64, 80, 48]
    transform = ChosenSizes(sizes, 128, [0.0] * 3, [1.0] * 3).train()
    images = [torch.rand(3, 40, 60), torch.rand(3, 60, 40), torch.rand(3, 40, 120)]
    transform.sizes = [80, 64, 64]
    assert transform(images)[0].image_sizes == [(80, 120), (96, 64), (42, 128)]  # the last is held by the longer side
    assert transform.eval()(images)[0].image_sizes == [(48, 72), (72, 48), (42, 128)]


def test_losses_of_an_image_do_not_depend_on_its_place() -> None:
    model = build_detector(tiny(norm="frozen"), tiny_images(), num_classes=2, seed=0).train()
    generator = torch.Generator().manual_seed(4)
    images = [torch.rand(3, 64, 64, generator=generator) for _ in range(2)]
    targets = [{"boxes": torch.tensor([[4.0 + n, 6, 50, 40]]), "labels": torch.tensor([1 + n])} for n in range(2)]
    alone: list[dict[str, Tensor]] = []
    for place in range(2):
        set_sizes_and_seeds(model, [64], [100 + place])
        alone.append(model(images[place : place + 1], targets[place : place + 1]))
    set_sizes_and_seeds(model, [64, 64], [101, 100])
    together = model(images[::-1], targets[::-1])
    for name, value in together.items():
        mean = (alone[0][name] + alone[1][name]) / 2
        assert float(value.detach()) == pytest.approx(float(mean.detach()), rel=1e-4), name


@pytest.mark.parametrize("beta", [0.02, 1 / 9, 0.5, 2.0])
def test_the_rpns_smooth_l1_has_its_beta(beta: float) -> None:
    model: Any = build_detector(tiny(rpn_beta=beta), tiny_images(), num_classes=2)
    rpn = model.rpn
    assert isinstance(rpn, BetaRPN) == (beta != 1 / 9)
    generator = torch.Generator().manual_seed(0)
    objectness = torch.randn(200, 1, generator=generator)
    deltas = torch.randn(200, 4, generator=generator).requires_grad_()
    targets = torch.randn(200, 4, generator=generator)
    labels = torch.randint(-1, 2, (200,), generator=generator).float()
    set_sizes_and_seeds(model, [], [9, 10])
    split = [labels[:120], labels[120:]]
    positives, negatives = rpn.fg_bg_sampler(split)
    positive, negative = (torch.where(torch.cat(masks))[0] for masks in (positives, negatives))
    count = len(positive) + len(negative)
    expected = F.smooth_l1_loss(deltas[positive], targets[positive], beta=beta, reduction="sum") / count
    (by_hand,) = torch.autograd.grad(expected, deltas)

    score, boxes = rpn.compute_loss(objectness, deltas, split, [targets[:120], targets[120:]])
    (gradient,) = torch.autograd.grad(boxes, deltas)
    assert float(boxes.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert torch.allclose(gradient, by_hand, rtol=1e-5, atol=1e-8)
    both = torch.cat([positive, negative])
    assert torch.equal(score, F.binary_cross_entropy_with_logits(objectness.flatten()[both], labels[both]))


def heads_inputs() -> tuple[dict[str, Tensor], list[Tensor], list[tuple[int, int]], list[dict[str, Tensor]]]:
    """Pyramid maps of one image of 64 x 64 px, proposals around its two objects and in a corner, and the objects."""
    generator = torch.Generator().manual_seed(2)
    maps = {str(n): torch.randn(1, 16, 16 >> n, 16 >> n, generator=generator) for n in range(4)}
    boxes = torch.tensor([[4.0, 6.0, 40.0, 44.0], [30.0, 10.0, 60.0, 50.0]])
    near = boxes.repeat(5, 1) + 3 * torch.randn(10, 4, generator=generator)
    proposals = torch.cat([near.clamp(0, 64), torch.tensor([[0.0, 0.0, 9.0, 9.0]]).repeat(10, 1)])
    return maps, [proposals], [(64, 64)], [{"boxes": boxes, "labels": torch.tensor([1, 2])}]


@pytest.mark.parametrize("beta", [0.02, 1 / 9, 0.5, 2.0])
def test_the_box_heads_smooth_l1_has_its_beta(beta: float) -> None:
    plain, model = (
        build_detector(tiny(box_beta=b), tiny_images(), num_classes=2, seed=0).train() for b in (1 / 9, beta)
    )
    heads: Any = model.roi_heads
    assert isinstance(heads, BetaRoIHeads) == (beta != 1 / 9)
    maps, proposals, sizes, targets = heads_inputs()
    regressed: list[Tensor] = []
    reference: Any = plain.roi_heads
    reference.box_predictor.register_forward_hook(lambda module, inputs, output: regressed.append(output[1]))
    set_sizes_and_seeds(plain, [], [9])
    expected_scores = reference(maps, proposals, sizes, targets)[1]["loss_classifier"]
    set_sizes_and_seeds(plain, [], [9])
    _, _, (labels,), (wanted,) = reference.select_training_samples(proposals, targets)
    positive = torch.where(labels > 0)[0]
    assert 0 < len(positive) < len(labels)
    own_class = regressed[0].view(len(labels), -1, 4)[positive, labels[positive]]
    expected = F.smooth_l1_loss(own_class, wanted[positive], beta=beta, reduction="sum") / len(labels)
    weight = reference.box_predictor.bbox_pred.weight
    (by_hand,) = torch.autograd.grad(expected, weight)

    set_sizes_and_seeds(model, [], [9])
    losses = heads(maps, proposals, sizes, targets)[1]
    (gradient,) = torch.autograd.grad(losses["loss_box_reg"], heads.box_predictor.bbox_pred.weight)
    assert float(losses["loss_box_reg"].detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert torch.allclose(gradient, by_hand, rtol=1e-4, atol=1e-6)
    assert torch.equal(losses["loss_classifier"], expected_scores)

    with torch.no_grad():  # the beta is of the loss alone: what is detected does not change with it
        result, same = (m.eval().roi_heads(maps, proposals, sizes)[0][0] for m in (model, plain))
    assert all(torch.equal(result[name], same[name]) for name in ("boxes", "scores", "labels"))


def test_detectron2_has_the_beta_of_keypoints_in_the_box_head_too() -> None:
    """The numbers of Detectron2's configs/COCO-Keypoints/Base-Keypoint-RCNN-FPN.yaml."""
    text = find_config("coco-keypoints-fpn-1x").read_text(encoding="utf-8")
    assert "  ROI_BOX_HEAD:\n    SMOOTH_L1_BETA: 0.5\n" in text
    assert text.count("BETA") == 1
    recipe = DETECT_RECIPES["coco-keypoints-fpn-1x"]().detector
    assert (recipe.box_beta, recipe.rpn_beta, recipe.proposals_train) == (0.5, 1 / 9, 1500)
    assert "    POST_NMS_TOPK_TRAIN: 1500\n" in text


@pytest.mark.parametrize("training", [True, False])
def test_an_image_too_narrow_for_its_longer_side_is_resized_to_one_pixel(training: bool) -> None:
    transform = ChosenSizes(32, 48, [0.0] * 3, [1.0] * 3).train(training)
    # 3000 px become 48, so that 1 px would become 0.016
    image, target = transform.resize(torch.ones(3, 3000, 1), {"boxes": torch.tensor([[0.0, 1000.0, 1.0, 2000.0]])})
    assert image.shape == (3, 48, 1)
    assert target is not None
    assert target["boxes"].tolist() == [[0, 16, 1, 32]]
    assert transform.resize(torch.ones(3, 2, 3000))[0].shape == (3, 1, 48)
    usual, _ = transform.resize(torch.ones(3, 64, 96))  # as before: 64 to 32
    assert usual.shape == (3, 32, 48)
