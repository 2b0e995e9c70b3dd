"""The same seed gives the same views in the same order, on any number of loader and training processes."""

from __future__ import annotations

import multiprocessing
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import resim.kernels
from resim.errors import UserError
from resim.views import loader
from resim.views import workers as worker_processes
from resim.views.crops import ViewsConfig
from resim.views.loader import (
    BatchOrder,
    PairBatch,
    PairDataset,
    collate,
    epoch_order,
    join_parts,
    make_loader,
    read_batches,
    shuffle_order,
)

CONFIG = ViewsConfig(image_size=32)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Twelve small images of different sizes, JPEG and PNG in turn."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    paths = [str(folder / f"{i:02d}.{('jpg', 'png')[i % 2]}") for i in range(12)]
    for i, path in enumerate(paths):
        Image.fromarray(rng.integers(0, 256, (60 + 5 * i, 100 - 3 * i, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture(scope="module")
def with_bad(images: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The same list with a truncated JPEG in place 3 and a text in place 8."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "cut.jpg").write_bytes(Path(images[0]).read_bytes()[:700])
    (folder / "text.jpg").write_text("no picture\n")
    paths = list(images)
    paths[3], paths[8] = str(folder / "cut.jpg"), str(folder / "text.jpg")
    return paths


def read(paths: Sequence[str], workers: int, *, batch: int = 4, end_step: int = 6, **order: int) -> list[PairBatch]:
    dataset = PairDataset(paths, CONFIG, seed=order.pop("views_seed", 7))
    settings: dict[str, Any] = {"seed": 7, "end_step": end_step, **order}
    batches = BatchOrder(len(paths), batch, **settings)
    return list(read_batches(make_loader(dataset, batches, workers=workers)))


def assert_same(a: PairBatch, b: PairBatch) -> None:
    assert torch.equal(a.pixels, b.pixels)
    assert a.draws == b.draws
    assert (a.flips, a.indices, a.bad) == (b.flips, b.indices, b.bad)


# -- the decoding process makes no difference


def test_the_number_of_workers_changes_no_pixel_no_draw_and_no_order(with_bad: list[str]) -> None:
    alone, helped = read(with_bad, 0), read(with_bad, 2)
    assert len(alone) == len(helped) == 6
    for a, b in zip(alone, helped, strict=True):
        assert_same(a, b)


def test_batches_do_not_depend_on_the_size_of_their_parts(with_bad: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read(with_bad, 0, batch=8, end_step=4)
    monkeypatch.setattr(loader, "PART", 3)
    for workers in (0, 2):
        batches = read(with_bad, workers, batch=8, end_step=4)
        assert len(batches) == 4
        for a, b in zip(batches, whole, strict=True):
            assert_same(a, b)


def test_at_most_two_batches_or_two_parts_per_worker_wait(images: list[str]) -> None:
    def waiting(batch: int, workers: int) -> int:
        order = BatchOrder(1024, batch, seed=0, end_step=1)
        return workers * (make_loader(PairDataset(images, CONFIG, seed=0), order, workers=workers).prefetch_factor or 0)

    assert waiting(256, 2) == waiting(256, 1) == 16  # parts of 32 images: two batches
    assert waiting(32, 2) == waiting(64, 2) == 4


def test_workers_ignore_signals_from_other_processes_than_their_parent(images: list[str]) -> None:
    dataset = PairDataset(images, CONFIG, seed=7)
    batches = iter(read_batches(make_loader(dataset, BatchOrder(12, 4, seed=7, end_step=9), workers=1)))
    received = [next(batches)]
    for worker in multiprocessing.active_children():
        assert worker.pid is not None
        for name in ("TERM", "INT"):  # from another process, because a signal of this one ends its workers
            subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    received += batches
    for a, b in zip(received, read(images, 0, end_step=9), strict=True):
        assert_same(a, b)


def test_a_worker_of_a_process_with_separate_memory_keeps_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(resim.kernels, "keep_memory_if_parted", lambda: done.append("keep_memory_if_parted"))
    monkeypatch.setattr(worker_processes, "_end_with_parent", lambda: done.append("_end_with_parent"))
    monkeypatch.setattr(worker_processes, "_ignore_signals_of_others", lambda: done.append("_ignore_signals_of_others"))
    worker_processes.start_worker(0)
    assert done == ["_end_with_parent", "keep_memory_if_parted", "_ignore_signals_of_others"]


def test_two_processes_together_read_what_one_reads(images: list[str]) -> None:
    whole = read(images, 0)
    parts = [read(images, 0, rank=rank, processes=2) for rank in range(2)]
    for one, first, second in zip(whole, *parts, strict=True):
        assert one.indices == [*first.indices, *second.indices]
        assert torch.equal(one.pixels, torch.cat([first.pixels, second.pixels], dim=1))
        for side in (0, 1):
            assert one.draws[side] == [*first.draws[side], *second.draws[side]]


def test_another_seed_cuts_other_views_of_the_same_images(images: list[str]) -> None:
    (one,), (other,) = read(images, 0, end_step=1), read(images, 0, end_step=1, views_seed=8)
    assert one.indices == other.indices
    assert one.draws != other.draws


# -- the order of a run


def order(images: int = 10, batch: int = 4, **more: int) -> list[list[tuple[int, int]]]:
    settings: dict[str, Any] = {"seed": 3, "end_step": 6, **more}
    return list(BatchOrder(images, batch, **settings))


def test_an_epoch_has_every_image_at_most_once_and_drops_its_incomplete_last_batch() -> None:
    batches = order()
    assert [[epoch for epoch, _ in batch] for batch in batches] == [[0] * 4] * 2 + [[1] * 4] * 2 + [[2] * 4] * 2
    for epoch in range(3):
        indices = [i for batch in batches[2 * epoch : 2 * epoch + 2] for _, i in batch]
        assert len(set(indices)) == 8
        assert set(indices) <= set(range(10))
        assert indices == epoch_order(10, 3, epoch)[:8].tolist()


def test_every_epoch_has_another_order_which_depends_on_the_seed() -> None:
    orders = [tuple(epoch_order(50, seed, epoch)) for seed in (0, 1) for epoch in range(3)]
    assert len(set(orders)) == 6
    assert all(sorted(o) == list(range(50)) for o in orders)
    assert np.array_equal(epoch_order(50, 1, 2), epoch_order(50, 1, 2))


@pytest.mark.parametrize("images", [1, 2, 33, 1000, 70_000])
def test_the_order_of_an_epoch_is_numpys_permutation_in_four_bytes_an_image(images: int) -> None:
    order = epoch_order(images, 3, 1)
    assert order.tolist() == np.random.default_rng([2, 3, 1]).permutation(images).tolist()
    assert order.nbytes == 4 * images


@pytest.mark.parametrize("start", [1, 2, 3, 5, 6])
def test_a_later_start_continues_the_same_list(start: int) -> None:
    continued = BatchOrder(10, 4, seed=3, start_step=start, end_step=6)
    assert list(continued) == order()[start:]
    assert len(continued) == 6 - start


def test_each_process_has_its_part_of_every_batch() -> None:
    parts = [order(images=16, batch=8, rank=rank, processes=4) for rank in range(4)]
    assert [[*a, *b, *c, *d] for a, b, c, d in zip(*parts, strict=True)] == order(images=16, batch=8)


# -- files that cannot be decoded


def test_a_bad_file_is_always_replaced_by_the_same_random_image(with_bad: list[str]) -> None:
    dataset = PairDataset(with_bad, CONFIG, seed=7)
    for place, reason in ((3, "OSError: "), (8, "UnidentifiedImageError: ")):
        pixels, draws, flip, index, bad = dataset[(0, place)]
        assert index not in (3, 8)
        assert bad[0].path == with_bad[place]
        assert bad[0].reason.startswith(reason)
        assert pixels.std() > 10
        again = dataset[(0, place)]
        assert np.array_equal(again[0], pixels)
        assert again[1:] == (draws, flip, index, bad)
    replacements = {dataset[(epoch, 3)][3] for epoch in range(20)}
    assert len(replacements) > 3


def test_bad_files_are_counted_and_listed_with_their_reasons(with_bad: list[str]) -> None:
    batches = read(with_bad, 0, end_step=3)  # one epoch: each file is read once
    bad = [file for batch in batches for file in batch.bad]
    assert {file.path for file in bad} == {with_bad[3], with_bad[8]}
    assert all("Error: " in file.reason for file in bad)
    assert all(len(batch) == 4 for batch in batches)
    assert not {3, 8} & {i for batch in batches for i in batch.indices}


def test_a_bad_file_does_not_change_its_neighbours(images: list[str], with_bad: list[str]) -> None:
    good, mixed = (PairDataset(paths, CONFIG, seed=7)[(0, 5)] for paths in (images, with_bad))
    assert np.array_equal(good[0], mixed[0])
    assert good[1:] == mixed[1:]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_without_a_decodable_image_stops_with_the_reason(tmp_path: Path, workers: int) -> None:
    paths = [str(tmp_path / f"{i}.jpg") for i in range(4)]
    for path in paths:
        Path(path).write_text("no picture\n")
    with pytest.raises(
        UserError, match=r"20 images in a row cannot be decoded, the last is .*jpg .Unidentified"
    ) as error:
        read(paths, workers, end_step=1)
    assert "\n" not in str(error.value)


# -- a batch


def batch_of(images: list[str], config: ViewsConfig) -> PairBatch:
    dataset = PairDataset(images, config, seed=7)
    return collate([dataset[(0, i)] for i in range(5)])


@pytest.mark.parametrize("flip", ["shared", "independent", "none"])
def test_the_views_of_a_batch(images: list[str], flip: str) -> None:
    config = ViewsConfig(image_size=48, flip=flip)  # type: ignore[arg-type]
    batch = batch_of(images, config)
    assert len(batch) == 5
    assert (batch.pixels.shape, batch.pixels.dtype) == ((2, 5, 48, 48, 3), torch.uint8)
    assert batch.indices == [0, 1, 2, 3, 4]
    for side, views in enumerate(batch.views(config)):
        assert (views.images.shape, views.images.dtype) == ((5, 3, 48, 48), torch.float32)
        assert views.images.is_contiguous(memory_format=torch.channels_last)
        assert views.crops.dtype == torch.float64
        assert views.crops.tolist() == [list(draw.crop) for draw in batch.draws[side]]
        assert (views.flipped is not None) == (flip == "independent")
        if views.flipped is not None:
            assert views.flipped.tolist() == [draw.flipped for draw in batch.draws[side]]


def test_views_without_augmentation_are_the_normalised_pixels(images: list[str]) -> None:
    config = ViewsConfig(image_size=32, blur_probability=0, jitter_probability=0, gray_probability=0)
    batch = batch_of(images, config)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    for side, views in enumerate(batch.views(config)):
        pixels = (views.images.permute(0, 2, 3, 1) * std + mean) * 255
        torch.testing.assert_close(pixels, batch.pixels[side].float(), rtol=0, atol=1e-3)


def test_parts_are_joined_on_the_device(images: list[str]) -> None:
    config = ViewsConfig(image_size=48, flip="independent")
    dataset = PairDataset(images, config, seed=7)
    parts = [collate([dataset[(0, i)] for i in some]) for some in ((0, 1), (2, 3), (4,))]
    joined, whole = join_parts(parts), batch_of(images, config)
    assert all(a is b.pieces[0] for a, b in zip(joined.pieces, parts, strict=True))  # nothing is copied by the host
    assert_same(joined, whole)
    for a, b in zip(joined.views(config), whole.views(config), strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.crops, b.crops)


# -- the shuffle of the key encoder


def test_the_shuffle_is_a_permutation_of_the_whole_batch_by_seed_and_step() -> None:
    orders = [shuffle_order(256, seed, step) for seed in (0, 1) for step in range(5)]
    assert all(o.dtype == torch.int64 and sorted(o.tolist()) == list(range(256)) for o in orders)
    assert len({tuple(o.tolist()) for o in orders}) == 10
    assert torch.equal(shuffle_order(256, 1, 4), orders[-1])


def test_the_shuffle_is_not_the_order_of_the_epoch() -> None:
    assert shuffle_order(64, 0, 0).tolist() != epoch_order(64, 0, 0).tolist()


def test_all_positions_are_shuffled_uniformly() -> None:
    steps = 2000
    counts = np.zeros((8, 8))
    for step in range(steps):
        counts[np.arange(8), shuffle_order(8, 0, step).numpy()] += 1
    expected = steps / 8
    statistic = (7 / 8) * ((counts - expected) ** 2 / expected).sum()
    assert statistic < 85.4  # chi-squared, 49 degrees of freedom, 0.1 %


def test_every_shuffled_group_has_images_of_most_groups() -> None:
    for step in range(50):
        groups = shuffle_order(256, 0, step).view(8, 32) // 32
        assert min(len(set(group.tolist())) for group in groups) >= 6


@pytest.mark.parametrize("excess", [1, 30])
def test_a_temporary_folder_in_which_no_socket_can_be_opened_is_refused(
    excess: int, images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch would drop the batches of such workers, and the training would wait for them for ever."""
    longest = "/" + "a" * (107 - len("/listener-12345678") - 1)
    dataset = PairDataset(images, CONFIG, 0)
    order = BatchOrder(len(images), 4, seed=0, end_step=1)
    monkeypatch.setattr("multiprocessing.util.get_temp_dir", lambda: longest)
    make_loader(dataset, order, workers=1)
    monkeypatch.setattr("multiprocessing.util.get_temp_dir", lambda: longest + "b" * excess)
    make_loader(dataset, order, workers=0)
    with pytest.raises(UserError, match=rf"TMPDIR .*: is {excess} bytes? too long: .* set TMPDIR to a folder with a"):
        make_loader(dataset, order, workers=1)
