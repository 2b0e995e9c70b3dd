"""Mapped windows show the same place in both views; pooling is the exact mean of the bilinear surface."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from resim.regions.cells import key_cells
from resim.regions.level import Level
from resim.regions.pooling import axis_weights, pooling_weights, precise_roi_pool
from resim.regions.windows import inside_view, map_windows, mirror_boxes, window_grid


def doubles(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def only(*values: bool) -> Tensor:
    return torch.tensor(values)


# -- grids


@pytest.mark.parametrize(
    ("window", "step", "closed", "count", "last"),
    [
        (48, 32, False, 36, 160.0),  # P4: 0, 32, ..., 160 along each side; 176 would end at 224
        (32, 24, False, 64, 168.0),  # P3: 0, 24, ..., 168; 192 would end at 224
        (48, 16, True, 144, 176.0),  # C4: 0, 16, ..., 176, the last window ends at 224
        (48, 16, False, 121, 160.0),  # open, the row and the column at the far edge are gone
    ],
)
def test_the_published_grids_at_224_px(window: int, step: int, closed: bool, count: int, last: float) -> None:
    grid = window_grid(224, window, step, closed=closed)
    assert (grid.shape, grid.dtype) == ((count, 4), torch.float64)
    assert grid[-1].tolist() == [last, last, last + window, last + window]


def test_a_grid_runs_row_by_row() -> None:
    assert window_grid(10, 4, 3).tolist() == [[0, 0, 4, 4], [3, 0, 7, 4], [0, 3, 4, 7], [3, 3, 7, 7]]
    assert window_grid(10, 4, 6, closed=True).tolist() == [
        [0, 0, 4, 4], [6, 0, 10, 4], [0, 6, 4, 10], [6, 6, 10, 10],
    ]  # fmt: skip


def test_a_window_as_large_as_the_view_is_in_the_closed_grid_only() -> None:
    assert window_grid(32, 32, 8, closed=True).tolist() == [[0, 0, 32, 32]]
    with pytest.raises(ValueError, match="no window of 32 px fits into a view of 32 px"):
        window_grid(32, 32, 8)


@pytest.mark.parametrize("closed", [False, True])
def test_a_window_larger_than_the_view_does_not_fit(closed: bool) -> None:
    with pytest.raises(ValueError, match="no window of 48 px fits into a view of 32 px"):
        window_grid(32, 48, 16, closed=closed)


@pytest.mark.parametrize(("window", "step"), [(0, 8), (8, 0), (8, -1)])
def test_windows_and_steps_are_at_least_a_pixel(window: int, step: int) -> None:
    with pytest.raises(ValueError, match="both must be at least 1 px"):
        window_grid(224, window, step)


# -- the map from view to view


def test_a_window_is_mapped_through_both_crops() -> None:
    # x: 10..20 px of a view of 100 that shows 50 source px from 30 on: 35..40; the key shows 20 px from 32 on: 15..40
    # y: 40..80 of 200 source px from 0 on: 80..160; the key shows 400 px from 60 on: 5..25
    mapped = map_windows(doubles((10, 40, 20, 80)), doubles((0, 30, 200, 50)), doubles((60, 32, 400, 20)), 100)
    assert mapped.dtype == torch.float64
    assert mapped.tolist() == [[[15, 5, 40, 25]]]


def test_each_image_has_its_own_crops_and_may_have_its_own_windows() -> None:
    whole, left_half = (0, 0, 100, 100), (0, 0, 100, 50)
    crops_q, crops_k = doubles(whole, left_half), doubles(left_half, whole)
    window = doubles((20, 20, 40, 40))
    expected = [[[40, 20, 80, 40]], [[10, 20, 20, 40]]]
    assert map_windows(window, crops_q, crops_k, 100).tolist() == expected
    assert map_windows(window.repeat(2, 1, 1), crops_q, crops_k, 100).tolist() == expected


def test_equal_crops_do_not_move_a_window() -> None:
    grid, crops = window_grid(224, 48, 32), doubles((13, 7, 140, 189))
    assert torch.allclose(map_windows(grid, crops, crops, 224), grid[None], rtol=0, atol=1e-12)


def test_integer_crops_are_converted_to_float64() -> None:
    window, crop = doubles((0, 0, 1, 1)), torch.tensor([[0, 0, 1, 1]])
    mapped = map_windows(window, crop, torch.tensor([[0, 0, 3, 3]]), 1)
    assert mapped.tolist() == [[[0, 0, 1 / 3, 1 / 3]]]


@pytest.mark.parametrize(
    ("flip_q", "flip_k", "expected"),
    [
        # the query shows source px 0..100, the key 0..200, both at 100 px: x halves
        (False, False, [5, 20, 15, 40]),
        (True, False, [35, 20, 45, 40]),  # 10..30 from the left is 70..90 in the unflipped view
        (False, True, [85, 20, 95, 40]),
        (True, True, [55, 20, 65, 40]),
    ],
)
def test_a_mirrored_view_mirrors_x_and_not_y(flip_q: bool, flip_k: bool, expected: list[float]) -> None:
    mapped = map_windows(
        doubles((10, 40, 30, 80)), doubles((0, 0, 100, 100)), doubles((0, 0, 200, 200)), 100,
        flipped_q=only(flip_q), flipped_k=only(flip_k),
    )  # fmt: skip
    assert mapped.tolist() == [[expected]]


def test_only_marked_boxes_are_mirrored_and_mirroring_is_its_own_inverse() -> None:
    boxes = doubles((0, 1, 2, 3), (5, 6, 7, 8)).unsqueeze(1)
    flipped = only(False, True)
    once = mirror_boxes(boxes, 10, flipped)
    assert once.tolist() == [[[0, 1, 2, 3]], [[3, 6, 5, 8]]]
    assert torch.equal(mirror_boxes(once, 10, flipped), boxes)


@pytest.mark.parametrize(
    ("box", "inside"),
    [
        ((0, 0, 223.999, 223.999), True),
        ((0, 0, 224, 100), False),
        ((0, 0, 100, 224), False),
        ((-1e-9, 0, 100, 100), False),
        ((0, -1e-9, 100, 100), False),
        ((-0.0, -0.0, 100, 100), True),
        ((300, 300, 400, 400), False),
    ],
)
def test_a_valid_window_starts_at_0_or_later_and_ends_before_the_far_edge(box: tuple[float, ...], inside: bool) -> None:
    assert inside_view(doubles(box), 224).tolist() == [inside]


def test_validity_keeps_the_leading_shape() -> None:
    boxes = torch.stack([window_grid(32, 8, 8), window_grid(32, 8, 8) + 8])
    assert inside_view(boxes, 32).sum(dim=1).tolist() == [9, 4]


Crop = tuple[int, int, int, int]
SIZE = 96  # side of the synthetic views, px


def cut(image: Tensor, crop: Crop, flipped: bool) -> Tensor:
    """The crop of an image (2, H, W), resized to SIZE x SIZE, mirrored if asked."""
    top, left, height, width = crop
    part = image[None, :, top : top + height, left : left + width]
    view = torch.nn.functional.interpolate(
        part, size=(SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False
    )[0]
    return view.flip(-1) if flipped else view


def read(view: Tensor, boxes: Tensor) -> Tensor:
    """What the view shows at the boxes' centres: (R, 2). Pixel i covers i to i + 1."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    places = centres / SIZE * 2 - 1
    sampled = torch.nn.functional.grid_sample(view[None], places[None, None], mode="bilinear", align_corners=False)
    return sampled[0, :, 0].T


@pytest.mark.parametrize("flips", list(itertools.product([False, True], repeat=2)))
@pytest.mark.parametrize("shared_flip", [False, True])
@pytest.mark.parametrize(
    ("crop_q", "crop_k"),
    [
        ((10, 20, 120, 96), (30, 25, 96, 130)),
        ((0, 0, 48, 60), (5, 3, 140, 190)),
        ((40, 90, 110, 100), (20, 60, 130, 140)),
    ],
)
def test_both_windows_show_the_same_place_of_the_image(
    crop_q: Crop, crop_k: Crop, shared_flip: bool, flips: tuple[bool, bool]
) -> None:
    y, x = torch.meshgrid(torch.arange(150.0) + 0.5, torch.arange(200.0) + 0.5, indexing="ij")
    image = torch.stack([x, y]).double()  # a pixel's value is where its centre lies
    if shared_flip:
        image = image.flip(-1)
    grid = window_grid(SIZE, 24, 9)
    mapped = map_windows(
        grid, doubles(crop_q), doubles(crop_k), SIZE, flipped_q=only(flips[0]), flipped_k=only(flips[1])
    )[0]
    valid = inside_view(mapped, SIZE)
    assert valid.sum() >= 3
    in_query = read(cut(image, crop_q, flips[0]), grid[valid])
    in_key = read(cut(image, crop_k, flips[1]), mapped[valid])
    assert (in_query - in_key).abs().max() < 0.5


# -- precise RoI pooling


def pool(values: list[list[float]], *box: float, stride: float = 1) -> float:
    features = torch.tensor(values, dtype=torch.float64)[None, None]
    return precise_roi_pool(features, doubles(box), stride).item()


def test_a_whole_cell_pools_to_the_mean_of_its_corners() -> None:
    # the surface is 1 + x + 2 y + 4 x y: 1 + 1/2 + 1 + 1
    assert pool([[1, 2], [3, 8]], 0, 0, 1, 1) == pytest.approx(3.5, abs=1e-15)


def test_a_window_inside_a_cell() -> None:
    # on the line 0, 10 the mean from 0.2 to 0.6 is the value at 0.4
    assert pool([[0, 10], [0, 10]], 0.2, 0.1, 0.6, 0.9) == pytest.approx(4, abs=1e-14)
    # f = x y on the cell: mean of x times mean of y
    assert pool([[0, 0], [0, 1]], 0.5, 0, 1, 0.5) == pytest.approx(0.75 * 0.25, abs=1e-15)


def test_a_window_over_three_samples() -> None:
    # 0.5..1.5 over 0, 1, 0: twice the mean of 0.5..1 (0.75); the same in y
    row = [0.0, 1.0, 0.0]
    assert pool([row, row, row], 0.5, 0.5, 1.5, 1.5) == pytest.approx(0.75, abs=1e-15)
    centre = [[0.0, 0, 0], row, [0.0, 0, 0]]
    assert pool(centre, 0.5, 0.5, 1.5, 1.5) == pytest.approx(0.5625, abs=1e-15)
    # the whole map 0..2: the centre's pyramid has volume 1
    assert pool(centre, 0, 0, 2, 2) == pytest.approx(0.25, abs=1e-15)


def test_outside_the_map_the_surface_falls_to_zero_within_a_cell() -> None:
    # a map of ones: from sample 0 to -1 the surface falls from 1 to 0, so the mean over -1..1 is (0.5 + 1) / 2 in x
    ones = [[1.0] * 4] * 4
    assert pool(ones, -1, 1, 1, 2) == pytest.approx(0.75, abs=1e-15)
    assert pool(ones, -1, -1, 1, 1) == pytest.approx(0.5625, abs=1e-15)
    assert pool(ones, 2, 2, 4, 4) == pytest.approx(0.5625, abs=1e-15)
    assert pool(ones, -3, 0, -1, 1) == 0.0


def test_a_window_larger_than_the_map_pools_the_sum_of_its_samples() -> None:
    # every sample's pyramid has volume 1 and lies inside -1..2
    assert pool([[1, 2], [3, 8]], -1, -1, 2, 2) == pytest.approx(14 / 9, abs=1e-14)
    assert pool([[1, 2], [3, 8]], -10, -10, 10, 10) == pytest.approx(14 / 400, abs=1e-14)


@pytest.mark.parametrize("box", [(0, 0, 0, 0), (1, 1, 1, 3), (1, 1, 3, 1), (2, 0, 1, 1), (2, 2, 1, 1)])
def test_an_empty_box_pools_to_0(box: tuple[float, ...]) -> None:
    features = torch.ones(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    pooled = precise_roi_pool(features, doubles(box), 1)
    pooled.sum().backward()
    assert pooled.item() == 0
    assert features.grad is not None
    assert features.grad.abs().max() == 0


def test_coordinates_are_divided_by_the_stride_without_a_half_pixel_shift() -> None:
    ramp = [[0.0, 1, 2, 3]] * 4
    # 8..24 px at stride 16: 0.5..1.5 cells, on the ramp 1
    assert pool(ramp, 8, 16, 24, 32, stride=16) == pytest.approx(1, abs=1e-15)
    # the first published P4 window: 0..3 cells
    assert pool(ramp, 0, 0, 48, 48, stride=16) == pytest.approx(1.5, abs=1e-15)


def surface(features: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The bilinear surface at points, one triangle function a sample, written as a loop."""
    height, width = features.shape
    value = torch.zeros_like(x)
    for i, j in itertools.product(range(height), range(width)):
        value += features[i, j] * (1 - (x - j).abs()).clamp(min=0) * (1 - (y - i).abs()).clamp(min=0)
    return value


@pytest.mark.parametrize(
    "box",
    [
        (0.3, 0.7, 2.9, 3.1),
        (-0.6, 1.2, 1.9, 4.8),
        (2.25, -2, 6.5, 0.4),
        (-3, -2, 8, 7),
        (1.1, 1.2, 1.3, 1.4),
        (1, 0, 2, 3),
    ],
)
def test_pooling_is_the_integral_over_the_box(box: tuple[float, float, float, float]) -> None:
    features = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x0, y0, x1, y1 = box
    middles = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    y, x = torch.meshgrid(y0 + (y1 - y0) * middles, x0 + (x1 - x0) * middles, indexing="ij")
    expected = surface(features, x, y).mean().item()
    got = precise_roi_pool(features[None, None], doubles(box), 1).item()
    assert got == pytest.approx(expected, abs=2e-5)  # midpoints err by (side / 400)^2 at a kink


def test_weights_of_a_box_within_the_samples_add_up_to_1() -> None:
    grid = window_grid(224, 48, 16, closed=True)
    inside = grid[(grid[:, 2:] <= 13 * 16).all(dim=1)]  # the last of 14 samples lies at 13 cells
    weights = pooling_weights(inside, 16, 14, 14)
    assert (weights.shape, weights.dtype) == ((121, 196), torch.float64)
    assert (weights >= 0).all()
    assert torch.allclose(weights.sum(dim=1), torch.ones(121, dtype=torch.float64), rtol=0, atol=1e-14)
    outside = pooling_weights(grid[-1:], 16, 14, 14)
    # 11..14 cells: full up to 13, then half a cell's worth of the last: (2 + 0.5) / 3 along each side
    assert outside.sum().item() == pytest.approx((2.5 / 3) ** 2, abs=1e-14)


def test_axis_weights_by_hand() -> None:
    low, high = doubles((0.0,)), doubles((1.5,))
    # triangle at 0 from 0 on: 1/2; at 1 up to 1.5: 1/2 + 3/8; at 2 from 1 to 1.5: 1/8
    assert axis_weights(low, high, 4).tolist() == [[[0.5, 0.875, 0.125, 0]]]


def test_each_image_is_pooled_at_its_own_boxes_or_all_at_the_same() -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 3, 5, 6, generator=generator, dtype=torch.float64)
    boxes = torch.rand(2, 7, 4, generator=generator, dtype=torch.float64) * 2
    boxes[..., 2:] += 2
    pooled = precise_roi_pool(features, boxes, 1)
    assert pooled.shape == (2, 7, 3)
    for n, r, c in itertools.product(range(2), range(7), range(3)):
        alone = precise_roi_pool(features[n : n + 1, c : c + 1], boxes[n, r : r + 1], 1)
        assert pooled[n, r, c].item() == pytest.approx(alone.item(), abs=1e-14)
    assert torch.equal(precise_roi_pool(features, boxes[0], 1)[0], pooled[0])
    channels_last = features.contiguous(memory_format=torch.channels_last)
    assert torch.allclose(precise_roi_pool(channels_last, boxes, 1), pooled, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_result_has_the_dtype_of_the_features(dtype: torch.dtype) -> None:
    pooled = precise_roi_pool(torch.ones(1, 2, 4, 4, dtype=dtype), doubles((8, 8, 24, 24)), 8)
    assert pooled.dtype == dtype
    assert torch.equal(pooled, torch.ones(1, 1, 2, dtype=dtype))


def test_pooling_is_differentiable_in_the_features() -> None:
    features = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    boxes = doubles((0.3, 0.2, 2.2, 1.7), (-1, -1, 1.5, 0.5), (0, 0, 0, 0))
    assert torch.autograd.gradcheck(lambda maps: precise_roi_pool(maps, boxes, 1), (features.requires_grad_(),))


@pytest.mark.parametrize(
    ("features", "boxes"),
    [((4, 3, 3), (2, 4)), ((2, 4, 3, 3), (2, 5)), ((2, 4, 3, 3), (4,)), ((2, 4, 3, 3), (3, 6, 4))],
)
def test_shapes_that_do_not_match_are_refused(features: tuple[int, ...], boxes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="feature"):
        precise_roi_pool(torch.zeros(features), torch.zeros(boxes), 8)


# -- levels


@pytest.mark.parametrize(
    ("name", "stride", "source", "from_fpn"),
    [("P3", 8, "C3", True), ("P4", 16, "C4", True), ("P5", 32, "C5", True), ("C4", 16, "C4", False)],
)
def test_the_name_of_a_level_gives_its_stride_and_source(name: str, stride: int, source: str, from_fpn: bool) -> None:
    level = Level(name=name)
    assert (level.stride, level.source, level.from_fpn) == (stride, source, from_fpn)


def test_a_level_on_the_command_line() -> None:
    text = "P3:window=32,step=24,negatives=group,closed=true,weight=0.5"
    level = Level(name="P3", window=32, step=24, negatives="group", closed=True, weight=0.5)
    assert Level.parse(text) == level
    assert str(level) == text
    assert str(Level(name="P4")) == "P4:window=48,step=32,negatives=all,closed=false,weight=1"


@pytest.mark.parametrize("text", ["P4", "P4:", "P4:window=48,step=32", "P4:closed=False,,weight=1.0"])
def test_omitted_fields_have_their_defaults(text: str) -> None:
    assert Level.parse(text) == Level(name="P4")


@pytest.mark.parametrize(
    "level",
    [
        Level(name="C4", window=48, step=16, closed=True),
        Level(name="P5", window=96, step=64, weight=0.1234567890123),
        Level(name="P3", negatives="group", weight=1e-12),
        Level(name="P3", weight=1e20),
    ],
)
def test_a_level_is_the_same_after_writing_and_reading(level: Level) -> None:
    assert Level.parse(str(level)) == level


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("P2", "level 'P2': a level is one of P3, P4, P5"),
        ("", "level '': a level is one of"),
        ("P44", "level 'P44'"),
        ("layer3", "level 'layer3'"),
        ("P4:size=3", "level P4: no field 'size': the fields are window, step, negatives, closed, weight"),
        ("P4:window", "level P4: window='' is not a whole number"),
        ("P4:window=4.5", "level P4: window='4.5' is not a whole number"),
        ("P4:weight=heavy", "level P4: weight='heavy' is not a number"),
        ("P4:closed=maybe", "level P4: closed='maybe' is not true or false"),
        ("P4:negatives=none", "level P4: negatives 'none': must be one of all, node, group"),
        ("P4:window=0", "level P4: window 0: must be at least 1 px"),
        ("P4:step=-1", "level P4: step -1: must be at least 1 px"),
    ],
)
def test_an_invalid_level_is_reported_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        Level.parse(text)
    assert message in str(error.value)


def test_the_windows_of_a_level_and_the_error_if_none_fits() -> None:
    assert torch.equal(Level(name="P4").windows(224), window_grid(224, 48, 32))
    assert len(Level(name="C4", step=16, closed=True).windows(224)) == 144
    with pytest.raises(ValueError, match="level P4: no window of 48 px fits into a view of 32 px"):
        Level(name="P4").windows(32)


# -- key cells


@pytest.mark.parametrize(("side", "cells"), [(14, 144), (28, 676)])
def test_the_published_maps_give_144_and_676_negatives_per_image(side: int, cells: int) -> None:
    assert key_cells(torch.ones(2, 5, side, side)).shape == (2, cells, 5)


def test_key_cells_are_normalised_3_by_3_means_in_row_order() -> None:
    features = torch.zeros(1, 2, 3, 5, dtype=torch.float64)
    features[0, 0] = torch.arange(15.0).reshape(3, 5)  # means 6, 7, 8 around the middle row's inner cells
    features[0, 1] = 8.0
    expected = [[6 / 10, 8 / 10], [7 / 113**0.5, 8 / 113**0.5], [8 / 128**0.5, 8 / 128**0.5]]
    cells = key_cells(features)
    assert cells.shape == (1, 3, 2)
    assert torch.allclose(cells[0], doubles(*map(tuple, expected)), rtol=0, atol=1e-15)
    turned = key_cells(features.transpose(2, 3))
    assert torch.equal(turned, cells)  # a single column reads as a single row


def test_key_cells_run_row_by_row() -> None:
    features = torch.ones(1, 2, 4, 5)
    features[0, 0] = torch.arange(4)[:, None] * 5.0 + torch.arange(5)
    order = key_cells(features)[0, :, 0]
    assert (order.diff() > 0).all()
    assert len(order) == 6
