"""One step of ReSim: losses, key encoder, queue and statistics."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from resim.model.resim import Keys, ReSim
from resim.regions.cells import key_cells
from resim.regions.level import Level
from resim.regions.pooling import precise_roi_pool
from resim.regions.windows import map_windows
from resim.views.views import Views
from small_model import DISJOINT, OVERLAPPING, P3, P4, build, gradients, pair, same, small, state_of, stir

pytestmark = pytest.mark.usefixtures("thin_resnets")

# -- losses


def plain_loss(queries: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    logits = torch.cat([(queries * positives).sum(dim=1, keepdim=True), queries @ negatives.T], dim=1) / 0.2
    return -logits.log_softmax(dim=1)[:, 0]


@pytest.mark.slow
def test_the_losses_are_plain_infonce_group_by_group() -> None:
    model = stir(build())
    views_q, views_k = pair(4, crops=[OVERLAPPING, [(0, 0, 60, 60), (20, 20, 60, 60)]] * 2)
    keys = model.encode_keys(views_q, views_k, order=torch.tensor([2, 0, 3, 1]))
    losses = model.query_losses(views_q.images, keys)
    vectors, maps = model.query(views_q.images)
    vectors = F.normalize(vectors, dim=1)
    expected: dict[str, list[Tensor]] = {"instance": [], "P4": [], "P3": []}
    for group in (slice(0, 2), slice(2, 4)):
        expected["instance"].append(plain_loss(vectors[group], keys.local_vectors()[group], model.queue).mean())
        for level in (P4, P3):
            level_keys = keys.levels[level.name]
            regions = precise_roi_pool(maps[level.name], level_keys.windows, level.stride)
            regions = F.normalize(regions, dim=-1)[group]
            cells = level_keys.cells.wait()
            negatives = cells if level.negatives == "all" else cells[group].flatten(0, 1)
            valid = level_keys.valid[group].flatten()
            assert 0 < valid.sum() < len(valid)
            each = plain_loss(regions.flatten(0, 1), level_keys.positives.wait()[group].flatten(0, 1), negatives)
            expected[level.name].append(each[valid].mean())
    for name, groups in expected.items():
        assert losses[name].item() == pytest.approx(torch.stack(groups).mean().item(), rel=1e-12)
    assert losses["total"].item() == pytest.approx(
        sum(losses[name].item() for name in ("instance", "P4", "P3")), rel=1e-12
    )


def test_negatives_are_all_the_images_cells_or_the_group_s() -> None:
    model = build()
    keys = model.encode_keys(*pair(4))
    assert keys.levels["P4"].cells.wait().shape == (4 * 2 * 2, 16)  # 4 x 4 cells at 64 px, 2 x 2 after 3 x 3 means
    assert keys.levels["P3"].cells.wait().shape == (4, 6 * 6, 16)


@pytest.mark.slow
def test_weights_apply_to_the_total_only() -> None:
    levels = (Level(name="P4", window=24, step=16, weight=0.5), Level(name="P3", window=16, weight=3))
    plain = tuple(Level(name=level.name, window=level.window, step=level.step) for level in levels)
    weighted, once = build(levels=levels)(*pair(2)), build(levels=plain)(*pair(2))
    for name in ("instance", "P4", "P3"):
        assert torch.equal(weighted[name], once[name])
    total = once["instance"] + 0.5 * once["P4"] + 3 * once["P3"]
    assert weighted["total"].item() == pytest.approx(total.item(), rel=1e-12)


def test_reported_shares_have_no_gradient() -> None:
    losses = build()(*pair(4))
    for name in ("accuracy/instance", "accuracy/P4", "accuracy/P3", "valid/P4", "valid/P3"):
        assert not losses[name].requires_grad
        assert 0 <= losses[name] <= 1
    assert all(losses[name].requires_grad for name in ("instance", "P4", "P3", "total"))
    assert len(losses) == 9


@pytest.mark.slow
def test_a_batch_without_valid_windows_has_region_losses_of_0() -> None:
    model = build()
    losses = model(*pair(4, crops=DISJOINT))
    losses["total"].backward()
    for level in ("P4", "P3"):
        assert losses[level].item() == losses[f"valid/{level}"].item() == losses[f"accuracy/{level}"].item() == 0
    assert torch.equal(losses["total"], losses["instance"])
    for name, grad in gradients(model).items():
        assert grad.isfinite().all()
        assert bool(grad.any()) == (not name.startswith("fpn.")), name


def test_a_group_without_valid_windows_counts_in_the_mean_over_groups() -> None:
    model = build()
    views_q, views_k = pair(4, crops=[DISJOINT, DISJOINT, OVERLAPPING, OVERLAPPING])
    keys = model.encode_keys(views_q, views_k)
    both = model.query_losses(views_q.images, keys)
    second = model.query_losses(views_q.images[2:], keys, first_group=1)
    for level in ("P4", "P3"):
        assert second[level] > 0
        assert both[level].item() == pytest.approx(second[level].item() / 2, rel=1e-12)


# -- the key encoder


def test_the_key_encoder_starts_as_a_copy_and_gets_no_gradient() -> None:
    model = build()
    assert same(state_of(model.query), state_of(model.key))
    model(*pair(2))["total"].backward()
    assert all(not p.requires_grad and p.grad is None for p in model.key.parameters())
    assert gradients(model)


@pytest.mark.slow
def test_the_momentum_update_comes_before_encoding() -> None:
    model = stir(build())
    moved = copy.deepcopy(model.key)
    with torch.no_grad():
        for key, query in zip(moved.parameters(), model.query.parameters(), strict=True):
            key.copy_(0.9 * key + 0.1 * query)
    views_q, views_k = pair(4)
    keys = model.encode_keys(views_q, views_k)
    for ours, expected in zip(model.key.parameters(), moved.parameters(), strict=True):
        assert torch.allclose(ours, expected, rtol=1e-12, atol=1e-15)
    with torch.no_grad():
        expected_vectors = F.normalize(moved(views_k.images)[0], dim=1)
    assert torch.allclose(keys.local_vectors(), expected_vectors, rtol=0, atol=1e-12)
    before = state_of(model.key)
    model.query_losses(views_q.images, keys)["total"].backward()
    assert same(before, state_of(model.key))  # once a step


def test_the_key_encoder_s_statistics_are_its_own() -> None:
    model = build()
    images = pair(4)[0]
    keys_of = Views(images.images * 3, images.crops)  # the first convolution passes the factor on
    model(images, keys_of)
    state = model.state_dict()
    query, key = (state[f"{which}.backbone.bn1.running_var"] for which in ("query", "key"))
    # from 1 at momentum 0.1: what was added is 0.1 times the variance
    assert torch.allclose(key - 0.9, 9 * (query - 0.9), rtol=1e-9)
    for which in ("query", "key"):
        assert state[f"{which}.backbone.bn1.num_batches_tracked"] == 1


def test_a_group_s_negatives_are_from_its_images_after_unshuffling() -> None:
    model = build(dim=3)
    views_q, views_k = pair(6)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    keys = model.encode_keys(views_q, views_k, order=order, encoder=read_coordinates)
    expected = key_cells(read_coordinates(views_k.images)[1]["P3"])
    assert torch.equal(keys.levels["P3"].cells.wait(), expected)


def test_keys_are_encoded_in_the_shuffled_order_and_returned_in_the_order_of_the_queries() -> None:
    model = build(key_momentum=1.0)
    views_q, views_k = pair(6)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    twin = copy.deepcopy(model.key)
    keys = model.encode_keys(views_q, views_k, order=order)
    with torch.no_grad():
        shuffled = F.normalize(twin(views_k.images[order])[0], dim=1)
        straight = F.normalize(twin(views_k.images)[0], dim=1)
    for place, image in enumerate(order.tolist()):
        assert torch.allclose(keys.local_vectors()[image], shuffled[place], rtol=0, atol=1e-12)
    assert not torch.allclose(keys.local_vectors(), straight, rtol=0, atol=1e-3)  # other images share its statistics


# -- the queue


def test_a_queue_wraps_around() -> None:
    model = build(queue_size=6)
    start = model.queue.clone()
    assert torch.allclose(start.norm(dim=1), torch.ones(6, dtype=torch.float64), atol=1e-6)
    entered = []
    for seed, position in ((0, 4), (1, 2), (2, 0)):
        views_q, views_k = pair(4, seed=seed)
        keys = model.encode_keys(views_q, views_k)
        model.finish_step(keys)
        entered.extend(keys.local_vectors())
        assert model.queue_position.item() == position
        if seed == 0:
            assert torch.equal(model.queue, torch.stack([*entered, *start[4:]]))
        elif seed == 1:
            # keys 6 and 7 have overwritten keys 0 and 1
            assert torch.equal(model.queue, torch.stack([entered[i] for i in (6, 7, 2, 3, 4, 5)]))
    assert torch.equal(model.queue, torch.stack(entered[6:]))


def test_of_a_batch_larger_than_the_queue_the_last_keys_stay() -> None:
    model = build(queue_size=3)
    for seed, position, kept in ((0, 1, (3, 1, 2)), (1, 2, (2, 3, 1))):
        # one at a time: 0 1 2 fill places 0 1 2, 3 takes place 0; then, from place 1, 0 1 2 3 take places 1 2 0 1
        keys = model.encode_keys(*pair(4, seed=seed))
        model.finish_step(keys)
        assert model.queue_position.item() == position
        assert torch.equal(model.queue, keys.local_vectors()[list(kept)])


@pytest.mark.slow
def test_a_step_s_keys_are_not_among_its_own_negatives() -> None:
    model = build(queue_size=4, levels=())
    before = model.queue.clone()
    views_q, views_k = pair(4)
    keys = copy.deepcopy(model).encode_keys(views_q, views_k)
    vectors = F.normalize(copy.deepcopy(model).query(views_q.images)[0], dim=1)
    losses = model(views_q, views_k)
    assert torch.equal(model.queue, keys.local_vectors())
    assert losses["instance"].item() == pytest.approx(
        plain_loss(vectors, keys.local_vectors(), before).mean().item(), rel=1e-12
    )
    losses["total"].backward()  # the queue has changed by now
    assert all(grad.isfinite().all() for grad in gradients(model).values())


# -- some groups at a time


def one_step(model: ReSim, n: int, groups_at_a_time: int | None) -> dict[str, Tensor]:
    views_q, views_k = pair(n, crops=[OVERLAPPING, DISJOINT, OVERLAPPING, OVERLAPPING] * (n // 4))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(5))
    if groups_at_a_time is None:
        losses = model(views_q, views_k, order=order)
        losses["total"].backward()
        return {name: loss.detach() for name, loss in losses.items()}
    keys = model.encode_keys(views_q, views_k, order=order, groups_at_a_time=groups_at_a_time)
    groups, size = n // model.config.group_size, model.config.group_size
    sums: dict[str, Tensor] = {}
    for first in range(0, groups, groups_at_a_time):
        last = min(first + groups_at_a_time, groups)
        losses = model.query_losses(views_q.images[first * size : last * size], keys, first_group=first)
        share = (last - first) / groups
        (losses["total"] * share).backward()
        for name, loss in losses.items():
            sums[name] = sums.get(name, torch.zeros(())) + loss.detach() * share
    model.finish_step(keys)
    return sums


@pytest.mark.slow
@pytest.mark.parametrize("groups_at_a_time", [1, 2, 3, 4, 9])
def test_some_groups_at_a_time_are_all_at_once(groups_at_a_time: int) -> None:
    whole = stir(build(fpn_norm=True))
    parts = copy.deepcopy(whole)
    expected, losses = one_step(whole, 8, None), one_step(parts, 8, groups_at_a_time)
    assert list(losses) == list(expected)
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name].item(), rel=1e-9, abs=1e-9)
    expected_gradients = gradients(whole)
    for name, grad in gradients(parts).items():
        assert (grad - expected_gradients[name]).norm() <= 1e-9 * expected_gradients[name].norm(), name
    for name, value in parts.state_dict().items():
        assert torch.allclose(value, whole.state_dict()[name], rtol=1e-9, atol=1e-12), name


def test_a_pass_has_at_least_one_group() -> None:
    with pytest.raises(ValueError, match="groups_at_a_time 0: must be at least 1"):
        build().encode_keys(*pair(4), groups_at_a_time=0)


# -- randomness


@pytest.mark.slow
def test_weights_depend_on_the_seed_only() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = state_of(build(seed=7))
        torch.manual_seed(2)
        torch.rand(3)
        assert same(first, state_of(build(seed=7)))
        other = state_of(build(seed=8))
    assert not torch.equal(first["queue"], other["queue"])
    assert not torch.equal(first["query.backbone.conv1.weight"], other["query.backbone.conv1.weight"])


def test_building_and_a_step_do_not_change_the_global_generator() -> None:
    before = torch.get_rng_state()
    build()(*pair(2))["total"].backward()
    assert torch.equal(torch.get_rng_state(), before)


# -- evaluation


@pytest.mark.slow
def test_evaluation_changes_nothing() -> None:
    model = stir(build()).eval()
    before = state_of(model)
    first, second = model(*pair(4)), model(*pair(4))
    assert same(before, state_of(model))
    assert all(torch.equal(loss, second[name]) for name, loss in first.items())


@pytest.mark.slow
def test_a_training_step_changes_all_state_but_the_query_s_weights() -> None:
    model = stir(build())
    before = state_of(model)
    model(*pair(4))["total"].backward()
    after = model.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    parameters = {f"query.{name}" for name, _ in model.query.named_parameters()}
    assert not changed & parameters
    assert changed == set(before) - parameters


# -- views that are mirrored separately


def coordinate_views(crops: Tensor, flipped: Tensor, size: int) -> Views:
    """Views whose three channels are the source's x, its y, and 1."""
    pixels = torch.arange(size, dtype=torch.float64) + 0.5
    images = torch.ones(len(crops), 3, size, size, dtype=torch.float64)
    for image, (top, left, height, width), mirrored in zip(images, crops, flipped, strict=True):
        x = left + pixels * width / size
        image[0] = x.flip(0) if mirrored else x
        image[1] = (top + pixels * height / size)[:, None]
    return Views(images, crops, flipped)


def read_coordinates(images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """An encoder whose cell i shows what the view shows at stride * i px, between two pixels."""

    def at_edges(x: Tensor, stride: int) -> Tensor:
        x = torch.cat([2 * x[..., :1] - x[..., 1:2], x], dim=-1)
        return (x[..., :-1:stride] + x[..., 1::stride]) / 2

    maps = {}
    for name, stride in (("P4", 16), ("P3", 8)):
        maps[name] = at_edges(at_edges(images, stride).transpose(2, 3), stride).transpose(2, 3)
    return images.mean(dim=(2, 3)), maps


@pytest.mark.parametrize("shuffled", [False, True])
def test_windows_of_mirrored_views_show_the_same_place(shuffled: bool) -> None:
    flips = torch.tensor(list(itertools.product([False, True], repeat=2)) * 2)
    generator = torch.Generator().manual_seed(4)
    crops = torch.rand(2, 8, 4, generator=generator, dtype=torch.float64) * 20
    crops[..., 2:] += 80
    views_q, views_k = (coordinate_views(crops[i], flips[:, i], 64) for i in range(2))
    order = torch.randperm(8, generator=generator) if shuffled else None
    model = build(dim=3, levels=(P4, P3))
    keys: Keys = model.encode_keys(views_q, views_k, order=order, encoder=read_coordinates)
    maps_q = read_coordinates(views_q.images)[1]
    for level in (P4, P3):
        level_keys = keys.levels[level.name]
        regions = precise_roi_pool(maps_q[level.name], level_keys.windows, level.stride)
        places_q = regions[..., :2] / regions[..., 2:]
        middle = (level_keys.windows[:, :2] + level_keys.windows[:, 2:]) / 2
        scale_x, scale_y = crops[0, :, 3] / 64, crops[0, :, 2] / 64
        x = torch.where(flips[:, :1], 64 - middle[:, 0], middle[:, 0]) * scale_x[:, None] + crops[0, :, 1:2]
        y = middle[:, 1] * scale_y[:, None] + crops[0, :, :1]
        expected = torch.stack([x, y], dim=-1)
        last = 64 - level.stride  # where the map's last sample lies, px
        within_q = (level_keys.windows[:, 2:] <= last).all(dim=1)
        assert torch.allclose(places_q[:, within_q], expected[:, within_q], rtol=0, atol=1e-9)
        mapped = map_windows(level_keys.windows, crops[0], crops[1], 64, flipped_q=flips[:, 0], flipped_k=flips[:, 1])
        within_k = level_keys.valid & (mapped[..., 2:] <= last).all(dim=-1)
        assert within_k.any(dim=1).all()
        places_k = level_keys.positives.wait()[..., :2] / level_keys.positives.wait()[..., 2:]
        assert torch.allclose(places_k[within_k], expected[within_k], rtol=0, atol=1e-9)


# -- mixed precision


@pytest.mark.slow
def test_under_autocast_products_are_bfloat16_and_losses_float32() -> None:
    model = ReSim(small())
    views_q, views_k = (views.to("cpu", torch.float32) for views in pair(4))
    exact = copy.deepcopy(model)(views_q, views_k)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        keys = model.encode_keys(views_q, views_k)
        losses = model.query_losses(views_q.images, keys)
    losses["total"].backward()
    assert keys.local_vectors().dtype == keys.levels["P3"].positives.wait().dtype == torch.float32
    assert keys.levels["P3"].cells.wait().dtype == keys.levels["P4"].cells.wait().dtype == torch.bfloat16
    for name in ("instance", "P4", "P3"):
        assert losses[name].dtype == torch.float32
        assert losses[name].item() == pytest.approx(exact[name].item(), rel=0.05)
    assert all(grad.isfinite().all() for grad in gradients(model).values())


# -- errors


def test_views_that_do_not_match_are_refused() -> None:
    model = build()
    with pytest.raises(ValueError, match="query and key views must match"):
        model(pair(4)[0], pair(2)[1])
    with pytest.raises(ValueError, match="query and key views must match"):
        model(pair(4)[0], pair(4, size=96)[1])


@pytest.mark.slow
def test_a_batch_that_is_no_whole_number_of_groups_is_refused_before_anything_changes() -> None:
    model = stir(build())
    before = state_of(model)
    with pytest.raises(ValueError, match="3 images are no whole number of groups of 2"):
        model(*pair(3))
    assert same(before, state_of(model))


def test_views_smaller_than_a_window_are_refused() -> None:
    with pytest.raises(ValueError, match="level P4: no window of 24 px fits into a view of 16 px"):
        build()(*pair(2, size=16))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": (P4, Level(name="P4", window=32))}, "levels P4, P4: name each level once"),
        ({"fpn_width": 0}, "fpn-width 0: must be at least 1"),
        ({"queue_size": -1}, "queue-size -1: must be at least 1"),
        ({"group_size": 0}, "group-size 0: must be at least 1"),
        ({"temperature": 0.0}, "temperature 0.0: must be above 0"),
        ({"temperature": float("nan")}, "temperature nan: must be a finite number"),
        ({"key_momentum": 1.5}, "key-momentum 1.5: must be at most 1"),
    ],
)
def test_an_invalid_configuration_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)
