"""Pairs of views: the four kinds of change, and the map from one view to the other."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from resim.probes.correspondence import correspondences
from resim.probes.labels import ProbeImages, read_images
from resim.probes.pairs import CHANGES, Change, KnownPairs, Warp, known_pairs, sample_change, sample_warp
from resim.regions.windows import inside_view, window_grid
from resim.views.crops import NO_JITTER, Draw, ViewsConfig
from resim.views.photometric import MEAN, STD

SIZE, STRIDE = 96, 8


@pytest.fixture(scope="module")
def ramps(tmp_path_factory: pytest.TempPathFactory) -> ProbeImages:
    """Images whose red is x and whose green is y, in px of the image."""
    folder = tmp_path_factory.mktemp("ramps")
    for i, (width, height) in enumerate([(240, 200), (200, 250), (220, 220), (180, 255)] * 3):
        pixels = np.zeros((height, width, 3), dtype=np.uint8)
        pixels[..., 0], pixels[..., 1] = np.arange(width), np.arange(height)[:, None]
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return read_images(folder)


def coordinates(images: Tensor) -> Tensor:
    """(N, 2, S, S): the x and y of the source that each pixel of a normalised view shows, px, at its edge."""
    mean, std = (torch.tensor(v[:2]).view(2, 1, 1) for v in (MEAN, STD))
    return (images[:, :2] * std + mean) * 255 + 0.5


def coordinate_features(images: Tensor) -> dict[str, Tensor]:
    """Random Fourier features of the source coordinates at every eighth pixel."""
    rng = torch.Generator().manual_seed(1)
    waves = torch.randn(512, 2, generator=rng) / 30
    phases = torch.rand(512, generator=rng) * 2 * math.pi
    # a cell lies at the corner of a pixel: the mean of the four pixels around it
    points = torch.nn.functional.avg_pool2d(coordinates(images), 2, stride=1, padding=0)
    points = torch.nn.functional.pad(points, (1, 0, 1, 0), mode="replicate")[..., ::STRIDE, ::STRIDE]
    return {"P3": torch.cos(torch.einsum("cd,ndhw->nchw", waves, points) + phases.view(1, -1, 1, 1))}


@pytest.mark.parametrize("change", ["scale", "warp"])
def test_coordinate_features_match_every_region(ramps: ProbeImages, change: Change) -> None:
    result = correspondences(
        coordinate_features, known_pairs(ramps, change, size=SIZE), strides={"P3": STRIDE}, window=24, step=16
    )["P3"]
    assert result.windows.sum() > 60
    assert result.accuracy == 1.0
    assert result.median_error < STRIDE / math.sqrt(2)
    assert len(result.windows) == 12


def test_photometric_change_does_not_move_regions(ramps: ProbeImages) -> None:
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(16, SIZE // STRIDE, SIZE // STRIDE, generator=rng)

    def position_alone(images: Tensor) -> dict[str, Tensor]:
        smooth = torch.nn.functional.avg_pool2d(noise[None], 3, stride=1, padding=1)
        return {"P3": smooth.expand(len(images), -1, -1, -1)}

    for change, least, most in (("photometric", 0.9, 1.0), ("scale", 0.0, 0.5)):
        pairs = known_pairs(ramps, change, size=SIZE)  # type: ignore[arg-type]
        result = correspondences(position_alone, pairs, strides={"P3": STRIDE}, window=24, step=16, radius=12)
        assert least <= result["P3"].accuracy <= most, change


@pytest.mark.parametrize("change", CHANGES)
def test_random_vectors_match_regions_at_chance(ramps: ProbeImages, change: Change) -> None:
    rng = torch.Generator().manual_seed(2)

    def random_features(images: Tensor) -> dict[str, Tensor]:
        return {"P3": torch.randn(len(images), 16, SIZE // STRIDE, SIZE // STRIDE, generator=rng)}

    # windows share no cell, so their matches are independent
    many = [pair for seed in range(8) for pair in known_pairs(ramps, change, size=SIZE, seed=seed)]
    result = correspondences(random_features, many, strides={"P3": STRIDE}, window=8, step=24, radius=16)["P3"]
    n = int(result.windows.sum())
    assert n > 250
    assert abs(result.accuracy - result.chance) < 4 * math.sqrt(result.chance * (1 - result.chance) / n)


@pytest.mark.parametrize("change", ["scale", "warp"])
def test_centres_of_matching_windows_show_the_same_point(ramps: ProbeImages, change: Change) -> None:
    grid, checked = window_grid(SIZE, 16, 16, closed=True), 0
    for pair in known_pairs(ramps, change, size=SIZE):
        mapped = pair.map_to_key(grid)
        valid = inside_view(mapped, SIZE)
        shown = [coordinates(images) for images in (pair.query, pair.key)]
        for n, r in valid.nonzero().tolist():
            points = []
            for boxes, side in ((grid[None].expand(len(mapped), -1, -1), 0), (mapped, 1)):
                x, y = ((boxes[n, r, :2] + boxes[n, r, 2:]) / 2).tolist()
                point = torch.tensor([[[[2 * x / SIZE - 1, 2 * y / SIZE - 1]]]], dtype=torch.float32)
                points.append(
                    torch.nn.functional.grid_sample(shown[side][n][None], point, align_corners=False).flatten()
                )
            # views show 1.0 to 2.6 px of the source a pixel, in steps of a gray level
            assert (points[0] - points[1]).abs().max() < 1.3
            checked += 1
    assert checked > 60


def test_each_change_changes_crops_or_colours_only() -> None:
    colours = ViewsConfig(image_size=SIZE, flip="none", jitter_probability=1.0)

    def sample(change: Change) -> tuple[Draw, Draw]:
        return sample_change(change, 300, 200, colours, np.random.default_rng(5))

    whole = (0, 50, 200, 200)
    for change in ("photometric", "warp"):
        assert [draw.crop for draw in sample(change)] == [whole, whole]
    for change in ("photometric", "both"):
        query, key = sample(change)
        assert query.jitter != NO_JITTER
        assert query.jitter != key.jitter
    for change in ("scale", "warp"):
        assert all(d.jitter == NO_JITTER and d.sigma == 0 and not d.gray for d in sample(change))
    assert [d.crop for d in sample("scale")] == [d.crop for d in sample("both")]
    assert [d.jitter for d in sample("photometric")] == [d.jitter for d in sample("both")]
    sides = []
    for seed in range(200):
        crops = [d.crop for d in sample_change("scale", 300, 200, colours, np.random.default_rng(seed))]
        assert whole in crops
        top, left, height, width = crops[1] if crops[0] == whole else crops[0]
        assert height == width
        assert 0 <= top <= 200 - height
        assert 50 <= left <= 250 - width
        sides.append(width / 200 if crops[0] == whole else 200 / width)
    assert 0.5 <= min(sides) < 0.55
    assert 1.9 < max(sides) <= 2.0
    assert 60 < sum(side < 1 for side in sides) < 140


def test_a_pair_depends_on_the_seed_and_the_index_of_its_image(ramps: ProbeImages) -> None:
    def keys(**settings: object) -> Tensor:
        return torch.cat([pair.key for pair in known_pairs(ramps, "both", size=SIZE, **settings)])  # type: ignore

    whole = keys()
    assert keys(indices=[3, 1]).equal(whole[[3, 1]])
    assert not keys(seed=1).equal(whole)


# -- warps


def warp_of(seed: int = 0, count: int = 3) -> Warp:
    return sample_warp(SIZE, [np.random.default_rng([seed, i]) for i in range(count)])


def test_map_points_inverts_the_warp() -> None:
    warp = warp_of()
    points = torch.rand(3, 50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * SIZE
    warped = warp.map_points(points)
    assert (warped + warp.shift(warped)).numpy() == pytest.approx(points.numpy(), abs=1e-9)
    shifts = (warped - points).norm(dim=-1)
    assert shifts.max() <= 0.06 * SIZE + 1e-9
    assert shifts.mean() > 0.01 * SIZE


def test_a_constant_warp_is_a_translation() -> None:
    """Waves of no length are a shift: the warped view is the view moved by whole pixels."""
    nothing = torch.zeros(1, 1, 2, dtype=torch.float64)
    warp = Warp(16, nothing, torch.tensor([[math.pi / 2]]).double(), torch.tensor([[[3.0, -2.0]]]).double())
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    # place y shows what was at y + (3, -2)
    assert warp.apply(image)[..., 2:, :-3].numpy() == pytest.approx(image[..., :-2, 3:].numpy(), abs=1e-5)
    window = torch.tensor([[4.0, 5.0, 8.0, 9.0]])
    assert warp.map_windows(window).flatten().tolist() == pytest.approx([1.0, 7.0, 5.0, 11.0])


def test_a_warped_window_keeps_its_size() -> None:
    warp = warp_of()
    mapped = warp.map_windows(window_grid(SIZE, 24, 24))
    assert mapped.shape == (3, 9, 4)
    assert (mapped[..., 2:] - mapped[..., :2]).numpy() == pytest.approx(24)


def test_pairs_have_the_size_of_their_views() -> None:
    assert KnownPairs(torch.zeros(2, 3, 40, 40), torch.zeros(2, 3, 40, 40), lambda windows: windows).size == 40


def test_images_that_cannot_be_decoded_are_omitted(ramps: ProbeImages, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    both = ProbeImages(
        source="", kind="unlabelled", refs=[*ramps.refs, str(tmp_path / "bad.png")], labels=None, classes=()
    )
    assert sum(len(pair.query) for pair in known_pairs(both, "scale", size=SIZE)) == 12
