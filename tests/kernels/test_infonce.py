"""The Triton kernel computes what the tiles compute: on a GPU, or on a CPU with Triton's interpreter.

Triton selects its interpreter when it is imported, so these tests run in a separate process.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from needs import need
from resim.model import infonce
from resim.model.infonce import info_nce

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu")
only_where_it_runs = pytest.mark.skipif(
    DEVICE.type == "cpu" and not INTERPRETED, reason="verified by test_on_a_cpu_with_the_interpreter"
)


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="verified by the process that starts this one")
def test_on_a_cpu_with_the_interpreter() -> None:
    need("triton", "the Triton kernel computes what the tiles compute", "install triton (Linux)")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of the kernel, with small blocks."""
    need("triton", "the Triton kernel computes what the tiles compute", "install triton (Linux)")
    from resim.kernels.gpu import infonce as infonce_triton

    if INTERPRETED:  # before Triton 3.8 it converts arrays to integers, which NumPy 2.5 does not allow
        interpreter = importlib.import_module("triton.runtime.interpreter")
        prepare = interpreter._patch_lang_tensor

        def prepare_integers(tensor: Any, scope: Any) -> None:
            prepare(tensor, scope)
            scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

        monkeypatch.setattr(interpreter, "_patch_lang_tensor", prepare_integers)
    monkeypatch.setattr(infonce_triton, "BLOCK_QUERIES", 16)
    monkeypatch.setattr(infonce_triton, "BLOCK_NEGATIVES", 16)
    infonce_triton.works.cache_clear()
    return infonce_triton


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1).to(DEVICE)


# queries and negatives that fill no block, one block, several; channels that are no power of two
SHAPES = [(1, 1, 1, 16), (1, 16, 16, 16), (2, 17, 33, 32), (3, 40, 70, 24), (1, 5, 100, 64)]


@only_where_it_runs
@pytest.mark.parametrize("splits", [1, 3, 100])
@pytest.mark.parametrize(("batches", "n", "m", "channels"), SHAPES)
def test_the_kernel_computes_the_plain_form(
    kernel: ModuleType, batches: int, n: int, m: int, channels: int, splits: int
) -> None:
    queries, negatives = unit(batches, n, channels, seed=1), unit(batches, m, channels, seed=2)
    logits = queries @ negatives.transpose(1, 2) / 0.2
    total, largest, mean = kernel.visit_negatives(queries, negatives, 0.2, with_mean=True, splits=splits)
    torch.testing.assert_close(total, logits.logsumexp(-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(largest, logits.amax(-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mean, logits.softmax(-1) @ negatives, rtol=1e-4, atol=1e-5)
    again = kernel.visit_negatives(queries, negatives, 0.2, with_mean=False, splits=splits)
    torch.testing.assert_close(again[0], total, rtol=1e-6, atol=1e-6)  # another kernel, which may add in another order
    assert again[2] is None


# Triton 3.9's interpreter multiplies bfloat16 matrices as integers
HALVES = [torch.float16] if INTERPRETED else [torch.float16, torch.bfloat16]


@only_where_it_runs
@pytest.mark.parametrize("dtype", HALVES)
def test_16_bits_are_accurate_to_their_rounding(kernel: ModuleType, dtype: torch.dtype) -> None:
    queries, negatives = unit(2, 20, 32, seed=1).to(dtype), unit(2, 50, 32, seed=2).to(dtype)
    logits = queries.float() @ negatives.float().transpose(1, 2) / 0.2
    total, largest, mean = kernel.visit_negatives(queries, negatives, 0.2, with_mean=True)
    assert total.dtype == largest.dtype == mean.dtype == torch.float32
    torch.testing.assert_close(total, logits.logsumexp(-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mean, logits.softmax(-1) @ negatives.float(), rtol=0, atol=2**-8)


@only_where_it_runs
def test_a_small_temperature_does_not_overflow(kernel: ModuleType) -> None:
    queries, negatives = unit(1, 4, 16, seed=1), unit(1, 40, 16, seed=2)
    results = kernel.visit_negatives(queries, negatives, 1e-4, with_mean=True, splits=2)
    assert all(value.isfinite().all() for value in results)
    # the softmax is 1 at the nearest negative
    nearest = (queries[0] @ negatives[0].T).argmax(dim=1)
    torch.testing.assert_close(results[2][0], negatives[0][nearest], rtol=1e-3, atol=1e-3)


@only_where_it_runs
@pytest.mark.parametrize("batched", [False, True])
def test_loss_and_gradients_through_the_kernel_are_those_of_the_tiles(
    kernel: ModuleType, batched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = [(2, 20, 32), (2, 20, 32), (2, 50, 32)] if batched else [(20, 32), (20, 32), (50, 32)]
    inputs = [unit(*shape, seed=i) for i, shape in enumerate(shapes)]

    def run() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        queries, positives = (x.clone().requires_grad_() for x in inputs[:2])
        contrast = info_nce(queries, positives, inputs[2], matmul_dtype=HALVES[-1])
        contrast.loss.square().sum().backward()
        assert queries.grad is not None
        assert positives.grad is not None
        return contrast.loss.detach(), contrast.correct, queries.grad, positives.grad

    tiles = run()
    calls: list[Any] = []

    def record_call(*_: Any) -> ModuleType:
        calls.append(None)
        return kernel

    monkeypatch.setattr(infonce, "_kernel", record_call)
    fused = run()
    assert calls
    assert torch.equal(fused[1], tiles[1])
    for ours, theirs in zip(fused, tiles, strict=True):
        if ours.is_floating_point():
            assert ours.dtype == theirs.dtype
            assert (ours - theirs).norm() < 0.01 * theirs.norm()


@only_where_it_runs
def test_a_kernel_with_wrong_results_is_not_used(kernel: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel.works(DEVICE, HALVES[-1])
    kernel.works.cache_clear()
    right = kernel.visit_negatives
    monkeypatch.setattr(kernel, "visit_negatives", lambda q, k, t, **settings: right(q, k, 2 * t, **settings))
    with pytest.warns(UserWarning, match="operations are used"):
        assert not kernel.works(DEVICE, HALVES[-1])
    kernel.works.cache_clear()


def test_splits_keep_the_processors_busy() -> None:
    need("triton", "splits keep the processors busy", "install triton (Linux)")
    module = importlib.import_module("resim.kernels.gpu.infonce")
    splits = {blocks: module.even_splits(blocks, 132) for blocks in (1, 72, 128, 132, 133)}
    assert splits[128] == splits[132] == 1  # nearly one program for each processor: more splits would save nothing
    for blocks, number in splits.items():
        rounds = -(-blocks * number // 132)
        busy = blocks * number / (132 * rounds)
        assert busy > 0.8 or number == module.LARGEST_SPLIT
    # P4 of the published recipe, 72 blocks of 128 queries: 3 splits would keep 82 % of the processors busy
    assert 72 * splits[72] / (132 * -(-72 * splits[72] // 132)) > 0.9


def test_a_cpu_uses_the_tiles() -> None:
    queries, negatives = torch.zeros(1, 4, 16), torch.zeros(1, 9, 16)
    assert infonce._kernel(queries, negatives, torch.bfloat16) is None  # on a CPU
