"""Cached features: the vectors of the centre of each image; the network is not changed."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resim.errors import UserError
from resim.model.encoder import Encoder, ModelConfig
from resim.probes.features import Network, centre_view, pooled_features, read_views, to_images
from resim.probes.labels import read_images
from resim.regions.level import Level
from resim.views.decode import Photo
from resim.views.loader import BadFile

LEVELS = (Level(name="P4"), Level(name="P3"), Level(name="C4"))


def network(*, has_head: bool = True, precision: str = "float32") -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = Encoder(ModelConfig(backbone="resnet18", levels=LEVELS, fpn_width=24, conv_width=12, dim=10))
    return Network(name="small", encoder=encoder.eval(), has_head=has_head, precision=precision)  # type: ignore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (60 + i, 90, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


def test_the_maps_are_those_of_the_encoder() -> None:
    small = network()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    vectors, maps = small.maps(images)
    with torch.no_grad():
        expected_vectors, expected_maps = small.encoder(images)
        stages = small.encoder.backbone(images)
    assert vectors is not None
    assert vectors.numpy() == pytest.approx(expected_vectors.numpy(), abs=1e-5)
    assert small.strides == {"C3": 8, "C4": 16, "C5": 32, "C4+conv": 16, "P3": 8, "P4": 16}
    assert set(maps) == set(small.strides)
    expected = dict(stages) | {"P3": expected_maps["P3"], "P4": expected_maps["P4"], "C4+conv": expected_maps["C4"]}
    for name, cells in maps.items():
        assert cells.numpy() == pytest.approx(expected[name].numpy(), abs=1e-4), name
        assert cells.shape[-1] * small.strides[name] == 64
    pooled = small.vectors(images)
    assert pooled["P4"].numpy() == pytest.approx(expected_maps["P4"].mean(dim=(2, 3)).numpy(), abs=1e-5)
    assert pooled["global"].equal(vectors)
    assert small.c5(images).numpy() == pytest.approx(pooled["C5"].numpy(), abs=1e-5)


def test_a_backbone_without_a_head_has_no_global_vectors() -> None:
    assert "global" not in network(has_head=False).vectors(torch.zeros(1, 3, 64, 64))


def test_bfloat16_gives_float32_features_close_by() -> None:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    exact, rounded = network().vectors(images), network(precision="bf16").vectors(images)
    for name, vectors in rounded.items():
        assert vectors.dtype == torch.float32
        assert float((vectors - exact[name]).norm() / exact[name].norm()) < 0.05, name
    assert not rounded["C5"].equal(exact["C5"])


def test_a_network_in_training_mode_is_refused() -> None:
    training = network()
    training.encoder.train()
    for compute in (training.maps, training.c5):
        with pytest.raises(ValueError, match="evaluation mode"):
            compute(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("not_finite", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_not_measured(not_finite: float) -> None:
    broken = network()
    for name, value in broken.encoder.state_dict().items():
        if name == "backbone.layer4.0.bn2.bias":
            value.fill_(not_finite)
    for compute in (broken.maps, broken.vectors, broken.c5):
        with pytest.raises(UserError, match=r"small: the features are not finite \(C5"):
            compute(torch.zeros(1, 3, 64, 64))


def test_features_of_a_folder(folder: Path) -> None:
    small, images = network(), read_images(folder)
    before = {name: value.clone() for name, value in small.encoder.state_dict().items()}
    counts: list[int] = []
    features = pooled_features(small, images, size=64, progress=counts.append)
    assert sum(counts) == 5
    assert features.kept.tolist() == [0, 1, 2, 3, 4]
    for i in range(5):
        expected = small.vectors(to_images(torch.from_numpy(centre_view(images.open(i), 64))))
        assert features.vectors["C5"][i].numpy() == pytest.approx(expected["C5"][0].numpy(), abs=1e-5)
    assert all(value.equal(before[name]) for name, value in small.encoder.state_dict().items())


def test_images_that_cannot_be_decoded_are_omitted(folder: Path) -> None:
    (folder / "1.png").write_bytes(b"no image")
    features = pooled_features(network(), read_images(folder), size=64)
    assert features.kept.tolist() == [0, 2, 3, 4]
    assert len(features.vectors["C5"]) == 4
    assert [Path(file.path).name for file in features.bad] == ["1.png"]
    for file in folder.glob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match="none of 5 images can be decoded"):
        pooled_features(network(), read_images(folder), size=64)


def test_the_centre_is_seven_eighths_of_the_shorter_side(tmp_path: Path) -> None:
    pixels = np.zeros((80, 160, 3), dtype=np.uint8)
    pixels[5:75, 45:115] = 255  # 70 px of 80, in the middle
    Image.fromarray(pixels).save(tmp_path / "a.png")
    view = centre_view(Photo(str(tmp_path / "a.png")), 70)
    assert view.shape == (1, 70, 70, 3)
    assert view.min() == 255


def test_batches_are_in_order_and_threads_are_joined(folder: Path) -> None:
    bad, before = list[BadFile](), threading.active_count()
    images = read_images(folder)
    batches = list(read_views(images, [4, 2, 0, 1, 3], lambda photo, i: np.full((1, 2, 2, 3), i), bad, batch=2))
    assert [indices for indices, _ in batches] == [[4, 2], [0, 1], [3]]
    assert [int(value) for _, pixels in batches for value in pixels[:, 0, 0, 0, 0]] == [4, 2, 0, 1, 3]
    assert threading.active_count() == before
    assert list(read_views(images, [], lambda photo, i: np.zeros((1, 2, 2, 3)), bad)) == []
