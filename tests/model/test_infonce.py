"""InfoNCE in tiles equals InfoNCE, without the whole logits matrix in memory."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from resim.model import infonce
from resim.model.infonce import Contrast, info_nce


def unit(rows: int, width: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    vectors = F.normalize(torch.randn(rows, width, generator=generator, dtype=torch.float64), dim=1)
    return vectors.to(dtype)


def plain(queries: Tensor, positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """The published form: cross entropy over (n, 1 + M) logits with the positive in column 0."""
    logits = torch.cat([(queries * positives).sum(dim=1, keepdim=True), queries @ negatives.T], dim=1)
    target = torch.zeros(len(queries), dtype=torch.long)
    return F.cross_entropy(logits / temperature, target, reduction="none")


def small_tiles(monkeypatch: pytest.MonkeyPatch, queries: int = 8, negatives: int = 16) -> None:
    monkeypatch.setattr(infonce, "TILE_QUERIES", queries)
    monkeypatch.setattr(infonce, "TILE_NEGATIVES", negatives)


def assert_same_as_plain(n: int, m: int, width: int, dtype: torch.dtype, temperature: float, tol: float) -> None:
    inputs = [unit(n, width, 1), unit(n, width, 2), unit(m, width, 3)]
    upstream = torch.linspace(-1, 2, n, dtype=torch.float64)  # a different weight for each query
    ours = [x.to(dtype).requires_grad_() for x in inputs]
    theirs = [x.to(dtype).double().requires_grad_() for x in inputs]
    loss = info_nce(ours[0], ours[1], ours[2], temperature=temperature).loss
    expected = plain(theirs[0], theirs[1], theirs[2], temperature)
    assert loss.dtype == dtype
    assert torch.allclose(loss.double(), expected, rtol=tol, atol=tol)
    loss.backward(upstream.to(dtype))
    expected.backward(upstream)
    for a, b in zip(ours, theirs, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert a.grad.dtype == dtype
        assert (a.grad.double() - b.grad).abs().max() <= tol * b.grad.abs().max()


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("temperature", [0.2, 0.07])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 15), (8, 16), (9, 17), (16, 32), (25, 49), (3, 100), (40, 5)])
def test_tiles_give_the_plain_loss_and_gradients(
    n: int, m: int, temperature: float, dtype: torch.dtype, tol: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_tiles(monkeypatch)
    assert_same_as_plain(n, m, 12, dtype, temperature, tol)


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_real_tiles_give_the_plain_loss_and_gradients(dtype: torch.dtype, tol: float) -> None:
    n, m = infonce.TILE_QUERIES + 100, 2 * infonce.TILE_NEGATIVES + 3
    assert_same_as_plain(n, m, 16, dtype, 0.2, tol)


@pytest.mark.parametrize("requiring", [(0,), (0, 1, 2)])
def test_a_batch_is_each_with_its_own_negatives(requiring: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch)
    rows = (9, 9, 21)
    together = [torch.stack([unit(r, 6, 10 * i + b) for b in range(3)]) for i, r in enumerate(rows)]
    alone = [[x[b].clone() for x in together] for b in range(3)]
    for index in requiring:
        together[index].requires_grad_()
        for inputs in alone:
            inputs[index].requires_grad_()
    contrast = info_nce(together[0], together[1], together[2])
    separate = [info_nce(*inputs) for inputs in alone]
    assert contrast.loss.shape == contrast.correct.shape == (3, 9)
    assert torch.equal(contrast.loss, torch.stack([c.loss for c in separate]))
    assert torch.equal(contrast.correct, torch.stack([c.correct for c in separate]))
    contrast.loss.square().sum().backward()
    torch.stack([c.loss.square().sum() for c in separate]).sum().backward()
    for index in requiring:
        expected = [inputs[index].grad for inputs in alone]
        grad = together[index].grad
        assert grad is not None
        assert all(torch.equal(grad[b], g) for b, g in enumerate(expected) if g is not None)


def test_with_few_queries_a_tile_has_more_negatives(monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch, 8, 16)
    tiles = infonce._tiles(2, 100)
    assert [(rows.stop, columns.start, columns.stop) for rows, columns in tiles] == [(2, 0, 64), (2, 64, 128)]
    assert len(infonce._tiles(9, 16)) == 2
    assert infonce._tiles(4, 0) == infonce._tiles(0, 4) == []


def test_a_loss_by_hand() -> None:
    # similarities 1 to the positive, 0 and -1 to the negatives, temperature 0.5: logits 2, 0, -2
    query, positive = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    negatives = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    loss, correct = info_nce(query, positive, negatives, temperature=0.5)
    assert loss.item() == pytest.approx(0.142932, abs=1e-6)  # ln(1 + exp(-2) + exp(-4))
    assert correct.tolist() == [True]


def test_the_default_temperature_is_0_2() -> None:
    inputs = unit(3, 4, 1), unit(3, 4, 2), unit(5, 4, 3)
    assert torch.equal(info_nce(*inputs).loss, info_nce(*inputs, temperature=0.2).loss)


def test_without_negatives_the_loss_and_its_gradients_are_0() -> None:
    queries, positives = unit(5, 4, 1).requires_grad_(), unit(5, 4, 2).requires_grad_()
    negatives = unit(0, 4, 3).requires_grad_()
    contrast = info_nce(queries, positives, negatives)
    contrast.loss.sum().backward()
    assert contrast.loss.tolist() == [0.0] * 5
    assert contrast.correct.all()
    for x in (queries, positives, negatives):
        assert x.grad is not None
        assert x.grad.shape == x.shape
        assert x.grad.count_nonzero() == 0


def test_a_query_is_correct_if_its_positive_beats_every_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch, 2, 2)
    x, y = (1.0, 0.0), (0.0, 1.0)
    queries = torch.tensor([x, x, x, y, y])
    positives = torch.tensor([x, y, (0.6, 0.8), y, (0.8, 0.6)])
    negatives = torch.tensor([(0.0, -1.0), (-1.0, 0.0), (-0.6, -0.8), (-0.8, 0.6), (0.28, -0.96)])
    # the best negative is 0.28 for x and 0.6 for y; a tie is not enough
    contrast = info_nce(queries, positives, negatives, temperature=0.5)
    assert contrast.correct.tolist() == [True, False, True, True, False]


@pytest.mark.parametrize("wanted", range(3))
def test_only_inputs_that_require_gradients_receive_them(wanted: int) -> None:
    def gradients(*requiring: int) -> list[Tensor | None]:
        inputs = [unit(6, 4, 1), unit(6, 4, 2), unit(9, 4, 3)]
        for index in requiring:
            inputs[index].requires_grad_()
        info_nce(inputs[0], inputs[1], inputs[2]).loss.sum().backward()
        return [x.grad for x in inputs]

    alone, everywhere = gradients(wanted), gradients(0, 1, 2)
    assert [g is not None for g in alone] == [index == wanted for index in range(3)]
    both = alone[wanted], everywhere[wanted]
    assert both[0] is not None
    assert both[1] is not None
    assert torch.equal(both[0], both[1])


def test_the_gradient_is_the_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch, 2, 3)
    inputs = tuple(unit(rows, 3, rows).requires_grad_() for rows in (5, 5, 7))
    assert torch.autograd.gradcheck(lambda q, k, negatives: info_nce(q, k, negatives).loss, inputs)


def test_products_in_bfloat16_stay_close_and_sums_stay_in_float32() -> None:
    inputs = [unit(300, 64, 1, torch.float32), unit(300, 64, 2, torch.float32), unit(5000, 64, 3, torch.float32)]

    def run(matmul_dtype: torch.dtype | None) -> tuple[Contrast, Tensor]:
        queries = inputs[0].clone().requires_grad_()
        contrast = info_nce(queries, inputs[1], inputs[2], matmul_dtype=matmul_dtype)
        contrast.loss.mean().backward()
        assert queries.grad is not None
        return contrast, queries.grad

    exact, exact_grad = run(None)
    rough, rough_grad = run(torch.bfloat16)
    assert rough.loss.dtype == rough_grad.dtype == torch.float32
    # a logit of at most 5 is off by at most 2 ** -7 of itself; the log-sum-exp by no more than the largest of these
    assert (rough.loss - exact.loss).abs().max() < 5 * 2**-7
    assert not torch.equal(rough.loss, exact.loss)
    assert F.cosine_similarity(rough_grad, exact_grad, dim=1).min() > 0.999


def test_sums_of_double_precision_beside_products_in_bfloat16() -> None:
    queries, positives, negatives = unit(6, 64, 1), unit(6, 64, 2), unit(90, 64, 3)
    result = info_nce(queries, positives, negatives, matmul_dtype=torch.bfloat16).loss
    assert result.dtype is torch.float64
    assert torch.allclose(result, plain(queries, positives, negatives, 0.2), atol=0.02)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_seen_in_its_own_loss_alone(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = unit(6, 64, 1, torch.float32)
    queries[2, 5] = value
    positives, negatives = unit(6, 64, 2, torch.float32), unit(90, 64, 3, torch.float32)
    result = info_nce(queries, positives, negatives, matmul_dtype=torch.bfloat16)
    assert result.loss.isfinite().tolist() == [True, True, False, True, True, True]
    small_tiles(monkeypatch, 4, 16)
    again = info_nce(queries, queries, negatives, matmul_dtype=torch.bfloat16)
    assert again.correct.tolist() == [True, True, False, True, True, True]


def test_a_small_temperature_does_not_overflow() -> None:
    queries = unit(4, 8, 1, torch.float32).requires_grad_()
    loss = info_nce(queries, -queries.detach(), unit(50, 8, 2, torch.float32), temperature=1e-3).loss
    loss.sum().backward()
    assert loss.isfinite().all()
    assert loss.min() > 1000
    assert queries.grad is not None
    assert queries.grad.isfinite().all()


@pytest.mark.parametrize(
    "shapes",
    [
        ((4, 8), (5, 8), (9, 8)),
        ((4, 8), (4, 8), (9, 7)),
        ((4, 8), (4, 8), (9,)),
        ((8,), (8,), (9, 8)),
        ((2, 4, 8), (2, 4, 8), (9, 8)),
        ((2, 4, 8), (2, 4, 8), (3, 9, 8)),
    ],
)
def test_shapes_that_do_not_match_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match="are needed, not"):
        info_nce(*(torch.zeros(shape) for shape in shapes))


# -- memory


class Memory(TorchDispatchMode):
    """The largest tensor any operation makes, and the most bytes alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.alive = 0
        self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._watch(tensor)
        return out

    def _watch(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if id(storage) in self._seen:
            return
        self.largest = max(self.largest, storage.nbytes() // tensor.element_size())
        self.alive += storage.nbytes()
        self.peak = max(self.peak, self.alive)
        self._seen.add(id(storage))
        weakref.finalize(storage, self._forget, id(storage), storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.alive -= size


def measure(n: int, m: int, width: int, *, all_gradients: bool = True) -> Memory:
    """Memory of one forward and backward pass, the inputs themselves not counted."""
    queries, positives, negatives = (unit(rows, width, rows, torch.float32) for rows in (n, n, m))
    queries.requires_grad_()
    if all_gradients:
        positives.requires_grad_()
        negatives.requires_grad_()
    with Memory() as memory:
        info_nce(queries, positives, negatives).loss.mean().backward()
    assert queries.grad is not None
    return memory


def test_the_meter_measures_the_logits_of_the_plain_form() -> None:
    queries, negatives = unit(30, 4, 1, torch.float32), unit(50, 4, 2, torch.float32)
    with Memory() as memory:
        plain(queries, queries, negatives, 0.2)
    assert memory.largest == 30 * 51
    assert memory.peak >= 2 * 30 * 51 * 4


@pytest.mark.slow
@pytest.mark.parametrize("all_gradients", [False, True])
@pytest.mark.parametrize(("n", "m"), [(64, 256), (1000, 256), (64, 3000), (1000, 3000)])
def test_no_tensor_is_larger_than_a_tile_or_an_input(
    n: int, m: int, all_gradients: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_tiles(monkeypatch, 32, 64)
    assert measure(n, m, 8, all_gradients=all_gradients).largest <= max(32 * 64, n * 8, m * 8)


def test_at_real_size_no_tensor_is_larger_than_a_tile() -> None:
    tile = infonce.TILE_QUERIES * infonce.TILE_NEGATIVES
    n, m = 2 * infonce.TILE_QUERIES, 3 * infonce.TILE_NEGATIVES
    memory = measure(n, m, 8)
    assert memory.largest == tile
    assert memory.peak < 4 * n * m  # less than one float32 logits matrix in all


@pytest.mark.parametrize("all_gradients", [False, True])
def test_memory_grows_with_images_as_its_inputs_do(all_gradients: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch, 32, 64)
    one, two, four = (measure(36 * images, 144 * images, 16, all_gradients=all_gradients).peak for images in (4, 8, 16))
    assert two < 2 * one
    assert four < 2 * two
    assert four < 4 * (36 * 16) * (144 * 16) / 4  # a quarter of one float32 logits matrix


def test_the_sum_of_many_shares_does_not_overflow_in_half_precision() -> None:
    query = torch.eye(1, 8)
    queries = query.clone().requires_grad_()
    negatives = query.expand(70_000, 8)  # equally near: their shares add up beyond float16
    contrast = info_nce(queries, query.roll(1, 1), negatives, matmul_dtype=torch.float16)
    (grad,) = torch.autograd.grad(contrast.loss.sum(), queries)
    exact = query.clone().requires_grad_()
    (expected,) = torch.autograd.grad(info_nce(exact, query.roll(1, 1), negatives).loss.sum(), exact)
    assert torch.allclose(grad, expected, rtol=1e-2, atol=1e-3)
