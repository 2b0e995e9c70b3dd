"""The variants of a study against loops over single windows, and the symmetric step against two plain ones."""

from __future__ import annotations

import dataclasses
import math

import methods
import pytest
import torch
import variants
from torch import Tensor

import resim.model.resim as model
import resim.training.prepare as preparation
from resim.distributed.processes import Processes
from resim.distributed.rows import PendingRows
from resim.model.keys import LevelKeys
from resim.model.losses import pool_regions, region_similarity
from resim.regions.level import Level
from resim.views.views import Views

IMAGES, CHANNELS, TEMPERATURE = 4, 8, 0.2
P4 = Level(name="P4", window=32, step=16)
P3 = Level(name="P3", window=16, step=24, negatives="group")
CPU = Processes(rank=0, count=1, device=torch.device("cpu"), cores=1)


def unit(*shape: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1)


def make_level(level: Level, size: int = 64) -> tuple[Tensor, LevelKeys, Tensor]:
    """Query maps, keys and the boxes of the windows in the key views; some windows are not valid."""
    torch.manual_seed(0)
    side = size // level.stride
    grid = level.windows(size)
    boxes = grid + torch.randint(-20, 20, (IMAGES, 1, 4))
    boxes[..., 2:] = boxes[..., :2] + torch.rand(IMAGES, len(grid), 2) * 30 + 4
    keys = LevelKeys(
        windows=grid,
        valid=torch.rand(IMAGES, len(grid)) < 0.7,
        positives=PendingRows(unit(IMAGES, len(grid), CHANNELS)),
        cells=PendingRows(unit(IMAGES, (side - 2) ** 2, CHANNELS)),
    )
    return torch.randn(IMAGES, CHANNELS, side, side), keys, boxes


def info_nce(query: Tensor, positive: Tensor, negatives: list[Tensor]) -> float:
    logits = [float(query @ key) / TEMPERATURE for key in (positive, *negatives)]
    return math.log(sum(math.exp(logit) for logit in logits)) - logits[0]


def expected_loss(level: Level, features: Tensor, keys: LevelKeys, choose: object) -> float:
    """The mean over two groups of the mean over their valid windows; `choose(n, r, m)` gives an image's negatives."""
    regions, positives = pool_regions(features, keys.windows, level.stride), keys.positives.wait()
    means = []
    for group in (range(2), range(2, 4)):
        losses = []
        for n in group:
            for r in range(len(keys.windows)):
                if keys.valid[n, r]:
                    images = group if level.negatives == "group" else range(IMAGES)
                    negatives = [key for m in images for key in choose(n, r, m)]  # type: ignore[operator]
                    losses.append(info_nce(regions[n, r], positives[n, r], negatives))
        means.append(sum(losses) / len(losses))
    return sum(means) / 2


@pytest.mark.parametrize("level", [P4, P3], ids=str)
def test_cells_that_overlap_the_positive_are_no_negatives(level: Level) -> None:
    features, keys, boxes = make_level(level)
    own = variants.OwnMasked()
    own.boxes[level.name] = boxes
    side = features.shape[-1]
    removed = 0

    def choose(n: int, r: int, m: int) -> list[Tensor]:
        nonlocal removed
        kept = []
        for index, cell in enumerate(keys.cells.wait()[m]):
            y, x = (number * level.stride for number in divmod(index, side - 2))
            x0, y0, x1, y1 = boxes[n, r].tolist()
            width = min(x1, x + 3 * level.stride) - max(x0, x)
            height = min(y1, y + 3 * level.stride) - max(y0, y)
            if m == n and width > 0 and height > 0:
                removed += 1
            else:
                kept.append(cell)
        return kept

    expected = expected_loss(level, features, keys, choose)
    loss, _, valid = own.region_similarity(
        features, keys, level, slice(0, 4), groups=2, temperature=TEMPERATURE, matmul_dtype=None
    )
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert removed > 0
    assert float(valid) == pytest.approx(float(keys.valid.float().mean()))


@pytest.mark.parametrize("level", [P4, P3], ids=str)
def test_where_no_window_is_in_the_key_view_the_masked_loss_is_the_plain_one(level: Level) -> None:
    features, keys, boxes = make_level(level)
    own = variants.OwnMasked()
    own.boxes[level.name] = boxes + 1000.0
    part, options = slice(2, 4), {"groups": 1, "temperature": TEMPERATURE, "matmul_dtype": None}
    masked = own.region_similarity(features[part], keys, level, part, **options)
    flat = dataclasses.replace(keys, cells=keys.cells.then(lambda rows: rows.flatten(0, 1)))
    plain = region_similarity(features[part], keys if level.negatives == "group" else flat, level, part, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(masked, plain)


@pytest.mark.parametrize("level", [P4, P3], ids=str)
def test_the_windows_of_all_others_are_the_negatives(level: Level) -> None:
    features, keys, _ = make_level(level)

    def choose(n: int, r: int, m: int) -> list[Tensor]:
        windows = enumerate(keys.positives.wait()[m])
        return [key for s, key in windows if keys.valid[m, s] and (m, s) != (n, r)]

    loss = variants.window_negatives(features, keys, level, slice(0, 4), groups=2, temperature=TEMPERATURE).loss
    assert float(loss) == pytest.approx(expected_loss(level, features, keys, choose), rel=1e-5)


def take_step(method: str, views_q: Views, views_k: Views) -> dict[str, float]:
    """The losses of a first step, in which key and query encoder are the same."""
    recipe = methods.make_recipe(method, methods.SIZES["cpu"], images=64, pairs=64, seed=0)
    config = dataclasses.replace(recipe.model, group_size=2, fpn_width=8, queue_size=8)
    with variants.apply_variant(method):
        stepper = preparation.make_stepper(config, methods.SGD, CPU, precision="float32", groups_at_a_time=1)
        return {name: float(value) for name, value in stepper(views_q, views_k, torch.arange(4)).items()}


def make_views() -> tuple[Views, Views]:
    torch.manual_seed(1)
    crops = torch.tensor([[0, 0, 96, 96], [8, 16, 64, 64], [40, 0, 90, 60], [0, 30, 80, 80]])
    return Views(torch.randn(4, 3, 96, 96), crops), Views(torch.randn(4, 3, 96, 96), crops + 3)


def test_a_symmetric_step_is_the_mean_of_both_directions() -> None:
    """For losses whose negatives are a group's or the queue's; those of P4 are twice as many."""
    views_q, views_k = make_views()
    there, back = take_step("resim-fpn", views_q, views_k), take_step("resim-fpn", views_k, views_q)
    both = take_step("resim-fpn+variant=symmetric", views_q, views_k)
    for name in ("instance", "P3", "valid/P3", "valid/P4"):
        assert both[name] == pytest.approx((there[name] + back[name]) / 2, rel=1e-5)
    assert both["P4"] > (there["P4"] + back["P4"]) / 2


@pytest.mark.parametrize("name", ["own-masked", "window-negatives"])
def test_fewer_negatives_lower_the_loss_of_a_step(name: str) -> None:
    views = make_views()
    plain, other = take_step("resim-fpn", *views), take_step(f"resim-fpn+variant={name}", *views)
    assert other["instance"] == plain["instance"]
    assert 0 < other["P3"] < plain["P3"]
    assert 0 < other["P4"] < plain["P4"]
    assert model.region_similarity is region_similarity  # afterwards


def test_an_unknown_variant_is_an_error() -> None:
    with pytest.raises(KeyError, match="other"):
        variants.apply_variant("resim-fpn+variant=other")
