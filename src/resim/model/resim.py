"""ReSim: a query encoder, its momentum copy, a queue of keys, and the losses that tie regions of two views together.

Shapes: N images on this process, R windows an image, C channels of a level, M key cells, D the global width.

One step: `encode_keys` (momentum update, shuffle, key forward, regions pooled where the key map is), `query_losses` for
some groups at a time (forward, losses; the caller runs backward), `finish_step` (keys enter the queue, running
statistics move). `forward` does the three for a whole batch. A group is a run of `group_size` consecutive images.

Source: Xiao et al., ICCV 2021 (arXiv 2103.12902), sections 3.1 to 3.3; He et al., arXiv 1911.05722.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resim.model.backbone import ResNet
from resim.model.collective import Coming, exchange_rows, gather_rows, inverse_order, world
from resim.model.encoder import Encoder, ModelConfig
from resim.model.fused.low import follow, forget
from resim.model.grouped_norm import commit_statistics, count_groups
from resim.model.infonce import Contrast, info_nce
from resim.model.published import translate_published
from resim.regions.cells import key_cells
from resim.regions.pooling import precise_roi_pool
from resim.regions.windows import inside_view, map_windows
from resim.views.views import Views, send

EncoderForward = Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class LevelKeys:
    """The key side of one level, without gradient. What comes from other processes is waited for when first read."""

    windows: Tensor
    """(R, 4) float64, the grid over every query view, px."""
    valid: Tensor
    """(N, R) bool: the window lies wholly inside the key view."""
    coming_positives: Coming
    coming_cells: Coming

    @functools.cached_property
    def positives(self) -> Tensor:
        """(N, R, C), L2-normalised."""
        return self.coming_positives()

    @functools.cached_property
    def cells(self) -> Tensor:
        """Negatives: (N, cells, C) of this process's images, or (M, C) of all processes' where the level says "all"."""
        return self.coming_cells()


@dataclass(frozen=True)
class Keys:
    """What a step's queries are compared with. Everything is in the order of the queries, shuffling undone."""

    coming_vectors: Coming
    images: int
    """N, of this process."""
    levels: dict[str, LevelKeys]

    @functools.cached_property
    def all_vectors(self) -> Tensor:
        """(W * N, D): all the processes' keys, which enter the queue."""
        return self.coming_vectors()

    def without_levels(self) -> Keys:
        """What `finish_step` needs of them."""
        return replace(self, levels={})

    @property
    def vectors(self) -> Tensor:
        """(N, D), L2-normalised: this process's keys."""
        rank, _ = world()
        return self.all_vectors[rank * self.images : (rank + 1) * self.images]


class ReSim(nn.Module):
    """The model of a recipe: `ReSim(resim_fpn().model)`.

    Weights are drawn from `seed` alone, not from PyTorch's global generator.

    Raises:
        UserError: no such backbone.
    """

    queue: Tensor
    queue_position: Tensor

    def __init__(self, config: ModelConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.query = Encoder(config)
            self.key = Encoder(config)
            queue = F.normalize(torch.randn(config.queue_size, config.dim), dim=1)
        self.key.load_state_dict(self.query.state_dict())
        self.key.requires_grad_(False)
        self.register_buffer("queue", queue)
        self.register_buffer("queue_position", torch.zeros((), dtype=torch.int64))

    def forward(self, views_q: Views, views_k: Views, *, order: Tensor | None = None) -> dict[str, Tensor]:
        """One training step's losses for a whole batch; the caller runs `losses["total"].backward()`.

        In training mode it also moves the key encoder, enqueues the keys and updates running statistics, once.

        Args:
            views_q: this process's N query views.
            views_k: the key views of the same images, in the same order and of the same size.
            order: permutation of the global batch in which the key encoder sees it (He et al., section 3.3), the
                same on every process; None: unshuffled.

        Returns:
            "instance", one entry a level such as "P4", and "total", the weighted sum: scalars with gradient, means
            over this process's groups. "accuracy/..." and "valid/..." beside them: shares in [0, 1], no gradient.

        Raises:
            ValueError: views that do not belong together, or a batch that is no whole number of groups.
        """
        keys = self.encode_keys(views_q, views_k, order=order, query_comes_next=True)
        losses = self.query_losses(views_q.images, keys)
        self.finish_step(keys)
        return losses

    @torch.no_grad()
    def encode_keys(
        self,
        views_q: Views,
        views_k: Views,
        *,
        order: Tensor | None = None,
        groups_at_a_time: int | None = None,
        encoder: EncoderForward | None = None,
        query_comes_next: bool = False,
    ) -> Keys:
        """Move the key encoder, encode all the key views and pool what the queries need of them.

        Key maps never leave the process that computes them: windows travel to them, pooled vectors travel back.

        Args:
            views_q: the query views, of which only the crops are used here.
            views_k: the key views.
            order: as in `forward`.
            groups_at_a_time: groups in one forward pass; None: all. It changes memory, not results.
            encoder: called in the place of `self.key` (a compiled form of it).
            query_comes_next: `query_losses` follows before the query encoder moves, and may read the copies of its
                weights that were made on the way.

        Raises:
            ValueError: as `forward`.
        """
        if len(views_q) != len(views_k) or views_q.size != views_k.size:
            raise ValueError(
                f"query and key views must match: {tuple(views_q.images.shape)} and {tuple(views_k.images.shape)}"
            )
        groups = count_groups(len(views_k), self.config.group_size)
        size, device = views_k.size, views_k.images.device
        matmul = _matmul_dtype(device)  # read here: autocast is off where the cells are made
        windows = {level.name: level.windows(size) for level in self.config.levels}
        mapped, valid = {}, {}
        for name, grid in windows.items():
            flips = {"flipped_q": views_q.flipped, "flipped_k": views_k.flipped}
            boxes = map_windows(grid.to(views_q.crops.device), views_q.crops, views_k.crops, size, **flips)
            inside = inside_view(boxes, size)
            boxes = torch.where(inside[..., None], boxes, 0.0)  # an empty box pools to 0
            mapped[name], valid[name] = exchange_rows(send(boxes, device), order), send(inside, device)
        images = views_k.images
        if matmul is not None and world()[1] > 1:
            images = images.to(matmul)  # what autocast's first convolution would make of them, at half the bytes
        images = exchange_rows(images, order)()
        boxes_of = {name: boxes() for name, boxes in mapped.items()}
        vectors: list[Tensor] = []
        pooled: dict[str, list[Tensor]] = {name: [] for name in windows}
        cells: dict[str, list[Tensor]] = {name: [] for name in windows}
        encode_key = self.key if encoder is None else encoder
        step = _chunk(len(images), groups, groups_at_a_time)
        with _forgetting(self.key), _forgetting(self.query, keep=query_comes_next):
            if self.training:
                copies = isinstance(self.key.backbone, ResNet) and encode_key is self.key
                weights = list(self.key.parameters()), list(self.query.parameters())
                follow(*weights, self.config.key_momentum, copies=copies)
            for start in range(0, len(images), step):
                part = slice(start, start + step)
                vector, maps = encode_key(images[part])
                with torch.autocast(device.type, enabled=False):
                    vectors.append(F.normalize(_wide(vector), dim=1))
                    for level in self.config.levels:
                        features = _wide(maps[level.name])
                        pooled[level.name].append(_regions(features, boxes_of[level.name][part], level.stride))
                        cells[level.name].append(key_cells(features).to(matmul or features.dtype))
        del images, boxes_of  # in a large batch, what is put in order below needs their room
        back = inverse_order(order)
        shuffled = gather_rows(torch.cat(vectors))
        levels = {}
        for level in self.config.levels:
            all_cells = torch.cat(cells.pop(level.name))
            levels[level.name] = LevelKeys(
                windows=send(windows[level.name], device),
                valid=valid[level.name],
                coming_positives=exchange_rows(torch.cat(pooled.pop(level.name)), back),
                # "all": a set, whose order the loss does not see
                coming_cells=gather_rows(all_cells).then(lambda rows: rows.flatten(0, 1))
                if level.negatives == "all"
                else exchange_rows(all_cells, back),
            )
        in_order = shuffled if back is None else shuffled.then(lambda rows: rows[send(back, device)])
        return Keys(in_order, len(views_k), levels)

    def query_losses(
        self, images: Tensor, keys: Keys, *, first_group: int = 0, encoder: EncoderForward | None = None
    ) -> dict[str, Tensor]:
        """Losses of some consecutive groups of this process's query views.

        Args:
            images: (n, 3, S, S), a whole number of groups.
            keys: of the whole step.
            first_group: where in this process's batch `images` start, groups.
            encoder: called in the place of `self.query` (DistributedDataParallel, a compiled form of it).

        Returns:
            As `forward`, means over the groups given.
        """
        groups = count_groups(len(images), self.config.group_size)
        per_group = len(images) // groups
        with _forgetting(self.query):
            vectors, maps = (self.query if encoder is None else encoder)(images)
        device = images.device
        matmul = _matmul_dtype(device)
        here = slice(first_group * per_group, first_group * per_group + len(images))
        means: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        with torch.autocast(device.type, enabled=False):
            vectors = F.normalize(_wide(vectors), dim=1)
            contrast = info_nce(
                vectors, keys.vectors[here], self.queue.to(vectors.dtype), temperature=self.config.temperature
            )
            means["instance"] = _mean(contrast, torch.ones(len(images), dtype=torch.bool, device=device), groups)
            for level in self.config.levels:
                level_keys = keys.levels[level.name]
                regions = _regions(_wide(maps[level.name]), level_keys.windows, level.stride).flatten(0, 1)
                positives = level_keys.positives[here].flatten(0, 1)
                negatives = level_keys.cells
                if level.negatives == "group":
                    regions, positives = (x.unflatten(0, (groups, -1)) for x in (regions, positives))
                    negatives = negatives[here].flatten(0, 1).unflatten(0, (groups, -1))
                contrast = info_nce(
                    regions, positives, negatives, temperature=self.config.temperature, matmul_dtype=matmul
                )
                means[level.name] = _mean(contrast, level_keys.valid[here], groups)
        weights = {"instance": self.config.instance_weight} | {level.name: level.weight for level in self.config.levels}
        losses = {name: columns[0] for name, columns in means.items()}
        losses["total"] = torch.stack([losses[name] * weight for name, weight in weights.items()]).sum()
        losses |= {f"accuracy/{name}": columns[1] for name, columns in means.items()}
        losses |= {f"valid/{level.name}": means[level.name][2] for level in self.config.levels}
        return losses

    @torch.no_grad()
    def finish_step(self, keys: Keys) -> Tensor | None:
        """In training mode: all the processes' keys enter the queue, first in first out; running statistics move.

        Returns:
            0, or NaN if a BatchNorm saw what is not finite; None where nothing moved.
        """
        if not self.training:
            return None
        capacity = len(self.queue)
        new = keys.all_vectors[-capacity:].to(self.queue.dtype)
        skipped = len(keys.all_vectors) - len(new)
        place = (self.queue_position + skipped + torch.arange(len(new), device=self.queue.device)) % capacity
        self.queue[place] = new
        self.queue_position.copy_((self.queue_position + len(keys.all_vectors)) % capacity)
        return commit_statistics(self)

    def load_published(self, state: dict[str, Tensor]) -> None:
        """Load the `state_dict` of a published ReSim-FPN checkpoint, whole: names with or without `module.`.

        Raises:
            ValueError: an entry is missing, left over or of another shape; nothing is loaded then.
        """
        ours, unknown = translate_published(state)
        own = self.state_dict()
        problems = {
            "missing": [name for name in own if name not in ours],
            "left over": unknown + [name for name in ours if name not in own],
            "of another shape": [
                f"{name} {tuple(ours[name].shape)} for {tuple(own[name].shape)}"
                for name in own
                if name in ours and ours[name].shape != own[name].shape
            ],
        }
        told = [
            f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if names[3:] else ''})"
            for what, names in problems.items()
            if names
        ]
        if told:
            raise ValueError(f"the state_dict does not fit this model: {'; '.join(told)}")
        self.load_state_dict(ours)


@contextmanager
def _forgetting(encoder: nn.Module, *, keep: bool = False) -> Iterator[None]:
    """Let go of its weights' copies at the end: they are out of date when it moves, and keys and queries need room.

    With `keep` only if something fails.
    """
    try:
        yield
    except BaseException:
        keep = False
        raise
    finally:
        if not keep:
            forget(encoder.parameters())


def _matmul_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype of products with negatives: autocast's where it is on; None: that of what is multiplied."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _regions(features: Tensor, boxes: Tensor, stride: int) -> Tensor:
    """(N, R, C): pooled regions of a map, L2-normalised."""
    return F.normalize(precise_roi_pool(features, boxes, stride), dim=-1)


def _mean(contrast: Contrast, valid: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and accuracy of the valid queries (0 if there are none) and the share of them: means over groups."""
    loss, correct, valid = (x.reshape(groups, -1) for x in (*contrast, valid))
    count = valid.sum(1).clamp(min=1)
    return (
        (torch.where(valid, loss, 0.0).sum(1) / count).mean(),
        ((correct & valid).sum(1) / count).mean(),
        valid.float().mean(),
    )


def _chunk(images: int, groups: int, groups_at_a_time: int | None) -> int:
    """Images in one pass."""
    if groups_at_a_time is not None and groups_at_a_time < 1:
        raise ValueError(f"groups_at_a_time {groups_at_a_time}: must be at least 1")
    return images // groups * min(groups, groups_at_a_time or groups)
