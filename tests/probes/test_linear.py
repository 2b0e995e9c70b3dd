"""The linear probes: the solution equals scikit-learn's, and SGD follows MoCo's protocol."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from needs import need
from resim.errors import UserError
from resim.model.encoder import Encoder, ModelConfig
from resim.probes.features import Network, pooled_features
from resim.probes.labels import read_images
from resim.probes.linear import fit_linear, fit_logistic
from resim.probes.linear_sgd import LinearConfig, learning_rate, train_linear


def blobs(n: int, c: int, k: int, *, seed: int = 0, apart: float = 1.0) -> tuple[Tensor, Tensor]:
    """n points of c correlated channels in k classes that overlap."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % k
    mix = torch.randn(c, c, generator=rng, dtype=torch.float64)
    centres = torch.randn(k, c, generator=rng, dtype=torch.float64) * apart
    return (torch.randn(n, c, generator=rng, dtype=torch.float64) + centres[labels]) @ mix / c**0.5 + 3, labels


# -- on cached features


@pytest.mark.slow
@pytest.mark.parametrize("strength", [1.0, 1e-2, 1e-4])
def test_the_solution_equals_that_of_scikit_learn(strength: float) -> None:
    sklearn = need("sklearn.linear_model", "the linear probe is scikit-learn's", "test")
    x, y = blobs(300, 12, 5)
    ours = fit_logistic(x, y, num_classes=5, strength=strength, tolerance=1e-7)
    model = sklearn.LogisticRegression(C=1 / (300 * strength), solver="newton-cholesky", tol=1e-10)
    theirs = model.fit(x.numpy(), y.numpy())
    assert ours.converged
    # with a gradient g, the weights are within |g| / strength of the solution
    near = 1e-7 * 60**0.5 / strength + 1e-6
    assert ours.weight.numpy() == pytest.approx(theirs.coef_, abs=near)
    bias = ours.bias - ours.bias.mean()  # the bias is defined up to a constant
    assert bias.numpy() == pytest.approx(theirs.intercept_ - theirs.intercept_.mean(), abs=10 * near)
    fresh, _ = blobs(200, 12, 5, seed=1)
    assert ours.scores(fresh).argmax(dim=1).tolist() == theirs.predict(fresh.numpy()).tolist()


def test_the_reported_gradient_is_that_of_the_objective() -> None:
    x, y = blobs(120, 6, 3)
    fit = fit_logistic(x, y, num_classes=3, strength=1e-3, tolerance=1e-6)
    weight, bias = fit.weight.clone().requires_grad_(), fit.bias.clone().requires_grad_()
    (F.cross_entropy(x @ weight.T + bias, y) + 1e-3 / 2 * weight.square().sum()).backward()
    assert weight.grad is not None
    assert bias.grad is not None
    largest = max(float(weight.grad.abs().max()), float(bias.grad.abs().max()))
    assert largest <= 1e-6
    assert largest == pytest.approx(fit.gradient, rel=1e-3, abs=1e-12)


def test_a_truncated_fit_has_not_converged() -> None:
    x, y = blobs(120, 6, 3)
    fit = fit_logistic(x, y, num_classes=3, strength=1e-5, tolerance=1e-9, most_evaluations=3)
    assert not fit.converged
    assert fit.gradient > 1e-9


def test_an_infinite_penalty_predicts_the_class_frequencies() -> None:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 0, 0, 0, 0, 0, 1, 2])
    fit = fit_logistic(x, y, num_classes=3, strength=1e6, tolerance=1e-9)
    shares = torch.softmax(fit.scores(torch.zeros(1, 3)), dim=1)[0]
    assert shares.tolist() == pytest.approx([6 / 8, 1 / 8, 1 / 8], abs=1e-4)


def test_the_strength_is_the_best_on_the_held_out_part() -> None:
    x, y = blobs(400, 30, 4, apart=0.5)
    fit = fit_linear(x, y, num_classes=4, strengths=(100.0, 1.0, 1e-2, 1e-4))
    tried = dict(fit.held_out)
    assert next(iter(tried)) == 100.0
    assert tried[fit.strength] == max(tried.values())
    assert fit.converged
    assert fit_linear(x, y, num_classes=4, strengths=(100.0, 1.0, 1e-2, 1e-4)).weight.equal(fit.weight)


def test_scaling_and_shifting_channels_does_not_change_the_scores() -> None:
    """Channels are standardised inside the fit."""
    x, y = blobs(200, 8, 3)
    scale, shift = torch.logspace(-3, 3, 8, dtype=torch.float64), torch.linspace(-5, 5, 8, dtype=torch.float64)
    plain, moved = (fit_linear(v, y, num_classes=3, strengths=(0.1,)) for v in (x, x * scale + shift))
    assert moved.scores(x * scale + shift).numpy() == pytest.approx(plain.scores(x).numpy(), abs=1e-3)


def test_constant_channels_have_weight_0() -> None:
    x, y = blobs(100, 4, 3)
    dead = torch.cat([x, torch.full((100, 2), 7.0, dtype=torch.float64)], dim=1)
    ours, plain = fit_linear(dead, y, num_classes=3), fit_linear(x, y, num_classes=3)
    assert ours.weight[:, 4:].abs().max() == 0
    assert ours.scores(dead).argmax(dim=1).equal(plain.scores(x).argmax(dim=1))


def test_bfloat16_features_are_fitted_in_float64() -> None:
    x, y = blobs(150, 6, 3)
    half = x.bfloat16()
    assert (
        fit_linear(half, y, num_classes=3)
        .scores(half)
        .equal(fit_linear(half.double(), y, num_classes=3).scores(half.double()))
    )


def test_classes_of_one_image_each_are_an_error() -> None:
    with pytest.raises(ValueError, match="no class has two images"):
        fit_linear(torch.randn(3, 2), torch.arange(3), num_classes=3)


# -- the published protocol


def test_the_schedule_is_mocos() -> None:
    config = LinearConfig()
    assert (config.lr, config.epochs, config.batch_size, config.momentum) == (30.0, 100, 256, 0.9)
    rates = [learning_rate(config, epoch) for epoch in (0, 59, 60, 79, 80, 99)]
    assert rates == pytest.approx([30, 30, 3, 3, 0.3, 0.3])


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """Twelve noisy images each of red and of blue, which features of any network separate."""
    rng = np.random.default_rng(0)
    for name, channel in (("blue", 2), ("red", 0)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 40, (72, 72, 3), dtype=np.uint8)
            pixels[..., channel] += 180
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{i}.png")
    return tmp_path / "set"


def network(seed: int = 0) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Encoder(ModelConfig(backbone="resnet18", levels=()))
    return Network(name="small", encoder=encoder.eval())


@pytest.mark.slow
def test_sgd_learns_to_separate_red_and_blue_and_does_not_change_the_network(colours: Path) -> None:
    images, frozen = read_images(colours), network()
    before = {name: value.clone() for name, value in frozen.encoder.state_dict().items()}
    config = LinearConfig(epochs=6, steps=(4,), lr=1.0, batch_size=8)
    counts: list[int] = []
    head = train_linear(frozen, images, config, size=64, progress=counts.append)
    assert sum(counts) == 6 * 24
    assert len(head.losses) == 6
    assert head.losses[-1] < 0.5 * math.log(2) < head.losses[0] + 0.5 * math.log(2)
    features = pooled_features(frozen, images, size=64)
    assert head.scores(features.vectors["C5"]).argmax(dim=1).tolist() == [0] * 12 + [1] * 12
    assert all(value.equal(before[name]) for name, value in frozen.encoder.state_dict().items())
    again = train_linear(frozen, images, config, size=64)
    assert again.weight.equal(head.weight)
    assert again.losses == head.losses


@pytest.mark.slow
def test_the_head_equals_a_linear_layer_trained_by_torch(colours: Path) -> None:
    """torch's layer, optimiser and scheduler are trained on the recorded features."""
    images, recorded = read_images(colours), list[Tensor]()

    class Recording(Network):
        def c5(self, images: Tensor) -> Tensor:
            recorded.append(super().c5(images))
            return recorded[-1]

    config = LinearConfig(epochs=3, steps=(1, 2), lr=0.5, batch_size=10)
    head = train_linear(Recording(name="", encoder=network().encoder), images, config, size=64)
    layer = torch.nn.Linear(512, 2)
    rng = torch.Generator().manual_seed(0)
    layer.weight.data.normal_(0, 0.01, generator=rng)
    layer.bias.data.zero_()
    solver = torch.optim.SGD(layer.parameters(), lr=0.5, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(solver, [1, 2], gamma=0.1)
    assert images.labels is not None
    batches = iter(recorded)
    for epoch in range(3):
        order = np.random.default_rng([9, 0, epoch]).permutation(24)
        for start in (0, 10, 20):
            labels = torch.from_numpy(images.labels[order[start : start + 10]])
            solver.zero_grad()
            F.cross_entropy(layer(next(batches)), labels).backward()
            solver.step()
        schedule.step()
    assert head.weight.numpy() == pytest.approx(layer.weight.detach().numpy(), abs=1e-6)
    assert head.bias.numpy() == pytest.approx(layer.bias.detach().numpy(), abs=1e-6)
    # every epoch has new crops
    assert not recorded[0].equal(recorded[3])


def test_images_that_cannot_be_decoded_are_omitted(colours: Path) -> None:
    (colours / "red" / "0.png").write_bytes(b"no image")
    head = train_linear(network(), read_images(colours), LinearConfig(epochs=1), size=64)
    assert [Path(file.path).name for file in head.bad] == ["0.png"]
    for file in colours.rglob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(UserError, match="no image can be decoded"):
        train_linear(network(), read_images(colours), LinearConfig(epochs=1), size=64)


@pytest.mark.parametrize("settings", [{"epochs": 0}, {"lr": 0.0}, {"batch_size": 0}, {"lr": float("nan")}])
def test_settings_out_of_range_are_errors(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        LinearConfig(**settings)  # type: ignore[arg-type]
