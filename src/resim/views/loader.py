"""Batches of view pairs from image paths: their order, decoding in worker processes, and unreadable files."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from resim.errors import UserError
from resim.views.crops import NO_JITTER, Draw, ViewsConfig, cut_views, draw_views, sample_generator
from resim.views.decode import BadImageError, Photo
from resim.views.limits import MAX_PIXELS
from resim.views.photometric import augment, blur_reach
from resim.views.shards import shard_order
from resim.views.views import Views
from resim.views.waiting import SLOW_SECONDS, read_in_time
from resim.views.workers import Board, check_temporary_folder, reading, start_worker

S = TypeVar("S")
K = TypeVar("K")
B = TypeVar("B")
_TRIES = 20  # images that may fail in a row
PART = 32  # images in one part of a batch; workers return parts, so that few images wait in memory


@dataclass(frozen=True)
class BadFile:
    """A file that could not be decoded."""

    path: str
    reason: str


class UnreadableError(UserError):
    """Images of which none can be decoded, nor any that replaces them.

    Attributes:
        bad: their files, and others that failed in the same batch.
    """

    def __init__(self, message: str, bad: Sequence[BadFile]) -> None:
        super().__init__(message)
        self.bad = tuple(bad)


@dataclass(frozen=True)
class PairBatch:
    """N view pairs as the workers return them: cropped pixels, and the parameters to finish them with."""

    pieces: tuple[Tensor, ...]
    """(2, n, S, S, 3) uint8 each: query and key views of some of the images, one piece after the other."""
    draws: tuple[Sequence[Draw], Sequence[Draw]]
    """N draws each, query and key."""
    flips: Sequence[bool]
    """The shared flip of each image, already applied to `pixels`."""
    indices: Sequence[int]
    """Position of each pair's image in the list of paths."""
    bad: Sequence[BadFile]
    """Files that could not be decoded and were replaced."""

    def __len__(self) -> int:
        return len(self.flips)

    @functools.cached_property
    def pixels(self) -> Tensor:
        """(2, N, S, S, 3) uint8: query and key views."""
        return self.pieces[0] if len(self.pieces) == 1 else torch.cat(self.pieces, dim=1)

    def pin_memory(self) -> PairBatch:
        """The same batch with its pixels in page-locked memory."""
        return replace(self, pieces=tuple(piece.pin_memory() for piece in self.pieces))

    def views(self, config: ViewsConfig, device: torch.device | str = "cpu") -> tuple[Views, Views]:
        """Finish both views of all the images on `device`: colours, blur, normalisation."""
        # concatenate on the device: the host of a GPU has no time for it
        pieces = [piece.to(device, non_blocking=True) for piece in self.pieces]
        pixels = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)
        radius = blur_reach(config.blur_sigma[1])
        pair = []
        for side, draws in enumerate(self.draws):
            images = augment(pixels[side], draws, order=config.photometric_order, blur_radius=radius)
            crops = torch.tensor([draw.crop for draw in draws], dtype=torch.float64)
            flipped = torch.tensor([draw.flipped for draw in draws])
            pair.append(Views(images, crops, flipped if config.flip == "independent" else None))
        return pair[0], pair[1]


Sample = tuple[np.ndarray, tuple[Draw, Draw], bool, int, list[BadFile]]
"""Pixels (2, S, S, 3), draws, shared flip, index (-1: no image could be decoded), files that were replaced."""


class PairDataset(Dataset[Sample]):
    """View pairs by (epoch, index). An image that cannot be decoded is replaced by a random one from the same list.

    After twenty images that cannot be decoded, the pair is blank and its index is -1: see `read_batches`.
    """

    def __init__(self, paths: Sequence[str], config: ViewsConfig, seed: int, *, max_pixels: int = MAX_PIXELS) -> None:
        self.paths, self.config, self.seed, self.max_pixels = paths, config, seed, max_pixels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        generator = sample_generator(self.seed, epoch, index)
        bad: list[BadFile] = []
        for _ in range(_TRIES):
            path = self.paths[index]
            try:
                with reading(path):
                    photo = Photo(path, max_pixels=self.max_pixels)
                    flip, draws = draw_views(self.config, photo.width, photo.height, generator)
                    return cut_views(photo, flip, draws, self.config.image_size), draws, flip, index, bad
            except BadImageError as error:
                bad.append(BadFile(path, str(error)))
                index = int(generator.integers(len(self.paths)))
        size = self.config.image_size
        none = Draw(
            crop=(0, 0, 1, 1), flipped=False, jitter=NO_JITTER, jitter_order=(0, 1, 2, 3), gray=False, sigma=0.0
        )
        return np.zeros((2, size, size, 3), dtype=np.uint8), (none, none), False, -1, bad


class BatchOrder(Sampler[list[tuple[int, int]]]):
    """This process's part of every batch, from one step to another, across epochs.

    The order of an epoch is a permutation that depends on (seed, epoch) only; for images in shards, one that reads each
    shard front to back. The incomplete last batch of an epoch is dropped. Process r of W has images r * batch / W to
    (r + 1) * batch / W of each batch.

    Args:
        images: number of images.
        batch: images in a batch, over all processes.
        seed: seed of the run.
        start_step: the first step.
        end_step: the step after the last.
        rank: r.
        processes: W.
        shards: number of images in each shard; empty: no shards.
    """

    def __init__(
        self,
        images: int,
        batch: int,
        *,
        seed: int,
        start_step: int = 0,
        end_step: int,
        rank: int = 0,
        processes: int = 1,
        shards: Sequence[int] = (),
    ) -> None:
        self.images, self.batch, self.seed, self.shards = images, batch, seed, shards
        self.start_step, self.end_step, self.rank, self.processes = start_step, end_step, rank, processes

    def __len__(self) -> int:
        return self.end_step - self.start_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        steps = self.images // self.batch
        part = self.batch // self.processes
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in range(self.start_step, self.end_step):
            if step // steps != epoch:
                epoch = step // steps
                del order  # before the next one takes as much memory
                order = (
                    shard_order(self.shards, self.seed, epoch)
                    if self.shards
                    else epoch_order(self.images, self.seed, epoch)
                )
            start = (step % steps) * self.batch + self.rank * part
            yield [(epoch, int(i)) for i in order[start : start + part]]


def epoch_order(images: int, seed: int, epoch: int) -> np.ndarray:
    """(images,) uint32, or int64 for more than 2^32 images: the order of the images in an epoch."""
    order = np.arange(images, dtype=np.uint32 if images <= 2**32 else np.int64)
    np.random.default_rng([2, seed, epoch]).shuffle(order)  # as `permutation` does, which takes int64
    return order


def shuffle_order(batch: int, seed: int, step: int) -> Tensor:
    """(batch,) int64: the shuffled order of a step's batch for the key encoder."""
    return torch.from_numpy(np.random.default_rng([3, seed, step]).permutation(batch))


def collate(samples: list[Sample]) -> PairBatch:
    """Join N samples of `PairDataset` into a batch."""
    pixels, draws, flips, indices, bad = zip(*samples, strict=True)
    return PairBatch(
        pieces=(torch.from_numpy(np.stack(pixels, axis=1)),),
        draws=([d[0] for d in draws], [d[1] for d in draws]),
        flips=list(flips),
        indices=list(indices),
        bad=[file for files in bad for file in files],
    )


class _Parts(Sampler[list[tuple[int, int]]]):
    """The keys of batches, in parts of at most `PART` images; `per_batch`: parts in each batch."""

    def __init__(self, order: BatchOrder) -> None:
        self.order = order
        self.per_batch = -(-order.batch // order.processes // PART)

    def __len__(self) -> int:
        return len(self.order) * self.per_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for keys in self.order:
            for start in range(0, len(keys), PART):
                yield keys[start : start + PART]


class Loader(DataLoader[B]):
    """A DataLoader whose processes publish on `board` which file they read."""

    def __init__(self, dataset: Dataset[Any], *, workers: int, **settings: Any) -> None:
        if workers:
            check_temporary_folder()
        self.board = Board(max(1, workers))
        super().__init__(
            dataset,
            num_workers=workers,
            worker_init_fn=functools.partial(start_worker, board=self.board) if workers else None,
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            **settings,
        )

    def read(self, signals: Sequence[int] = (), slow_seconds: float = SLOW_SECONDS) -> Generator[B, None, None]:
        """Yield the batches; slow files are named, and a signal ends the wait for one, as in `read_in_time`."""
        return read_in_time(self, self.board, workers=self.num_workers, signals=signals, slow_seconds=slow_seconds)


def make_loader(
    dataset: Dataset[S],
    order: Sampler[list[K]],
    *,
    workers: int,
    pin_memory: bool = False,
    join: Callable[[list[S]], B] = collate,
) -> Loader[B]:
    """Build a loader with the batches of `order`.

    A `BatchOrder` is loaded in parts of batches, which `read_batches` joins.

    Args:
        dataset: samples by key.
        order: the keys of each batch.
        workers: number of worker processes; 0: load in this process.
        pin_memory: whether to copy batches to page-locked memory.
        join: joins samples into a batch.
    """
    parts = _Parts(order) if isinstance(order, BatchOrder) else order
    per_batch = parts.per_batch if isinstance(parts, _Parts) else 1
    return Loader(
        dataset,
        workers=workers,
        batch_sampler=parts,
        collate_fn=join,
        pin_memory=pin_memory,
        # prefetch two batches, or two parts per worker
        prefetch_factor=max(2, -(-2 * per_batch // workers)) if workers else None,
    )


def join_parts(parts: Sequence[PairBatch]) -> PairBatch:
    """Join consecutive parts of a batch."""
    if len(parts) == 1:
        return parts[0]
    return PairBatch(
        pieces=tuple(piece for part in parts for piece in part.pieces),
        draws=([draw for part in parts for draw in part.draws[0]], [draw for part in parts for draw in part.draws[1]]),
        flips=[flip for part in parts for flip in part.flips],
        indices=[index for part in parts for index in part.indices],
        bad=[file for part in parts for file in part.bad],
    )


def read_batches(
    loader: Loader[PairBatch], signals: Sequence[int] = (), slow_seconds: float = SLOW_SECONDS
) -> Generator[PairBatch, None, None]:
    """Yield the loader's batches, joined from their parts. After a signal, they end where the loader hangs.

    Args:
        loader: of parts of batches.
        signals: as in `read_in_time`.
        slow_seconds: as in `read_in_time`.

    Raises:
        UnreadableError: twenty images in a row cannot be decoded.
    """
    order = loader.batch_sampler
    assert isinstance(order, _Parts)
    parts: list[PairBatch] = []
    with contextlib.closing(loader.read(signals, slow_seconds)) as reading_parts:
        for part in reading_parts:
            if -1 in part.indices:
                last = part.bad[-1]
                raise UnreadableError(
                    f"{_TRIES} images in a row cannot be decoded, the last is {last.path} ({last.reason})",
                    [file for each in (*parts, part) for file in each.bad],
                )
            parts.append(part)
            if len(parts) == order.per_batch:
                yield join_parts(parts)
                parts = []
