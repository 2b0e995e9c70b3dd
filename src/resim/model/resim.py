"""ReSim: a query encoder, its momentum copy, a queue of keys, and the losses that tie regions of two views together.

`resim.model.reference` is the same method in its plainest form. Here a step is cut where memory and other processes
need it: `encode_keys` (momentum update, shuffle, key forward, regions pooled where the key map is), `query_losses` for
some groups at a time (forward, losses; the caller runs backward), `finish_step` (keys enter the queue, running
statistics move). `forward` does the three for a whole batch. A group is a run of `group_size` consecutive images.

Shapes: N images on this process of W, R windows an image, C channels of a level, M key cells, D the global width.

Source: Xiao et al., ICCV 2021 (arXiv 2103.12902), sections 3.1 to 3.3; He et al., arXiv 1911.05722.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from resim.distributed.rows import exchange_rows, gather_rows, inverse_order
from resim.layers.grouped_norm import commit_statistics, count_groups
from resim.model.config import ModelConfig
from resim.model.encoder import Encoder
from resim.model.key_encoding import EncoderForward, encode_shuffled, images_per_pass, narrow_for_transfer
from resim.model.keys import Keys, LevelKeys, map_to_keys
from resim.model.losses import image_similarity, matmul_dtype, region_similarity
from resim.transfers import to_device
from resim.views.views import Views


class ReSim(nn.Module):
    """The model of a recipe: `ReSim(resim_fpn().model)`.

    Weights are drawn from `seed` alone, not from PyTorch's global generator.

    Raises:
        UserError: no such backbone.
    """

    queue: Tensor
    """(K, D), L2-normalised keys of earlier images."""
    queue_position: Tensor
    """Row of the oldest key, which the next one replaces."""

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
            over this process's groups. "accuracy/..." and "valid/...": shares in [0, 1], no gradient.

        Raises:
            ValueError: views that do not belong together, or a batch that is no whole number of groups.
        """
        keys = self.encode_keys(views_q, views_k, order=order)
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
    ) -> Keys:
        """Move the key encoder, encode all the key views and pool what the queries need of them.

        Key maps never leave the process that computes them: windows travel to them, pooled vectors travel back.

        Args:
            views_q: the query views, of which only the crops are used here.
            views_k: the key views.
            order: as in `forward`.
            groups_at_a_time: groups in one forward pass; None: all. It changes memory, not results.
            encoder: called in the place of `self.key` (a compiled form of it).

        Raises:
            ValueError: as `forward`.
        """
        if len(views_q) != len(views_k) or views_q.size != views_k.size:
            raise ValueError(
                f"query and key views must match: {tuple(views_q.images.shape)} and {tuple(views_k.images.shape)}"
            )
        per_pass = images_per_pass(len(views_k), self.config.group_size, groups_at_a_time)
        device, levels = views_k.images.device, self.config.levels
        windows = {level.name: map_to_keys(level, views_q, views_k) for level in levels}

        if self.training:
            self._move_key_encoder()

        # Shuffle: the process that encodes an image needs its windows too.
        boxes = {name: exchange_rows(to_device(each.boxes, device), order) for name, each in windows.items()}
        images = exchange_rows(narrow_for_transfer(views_k.images), order)
        vectors, regions, cells = encode_shuffled(encoder or self.key, images, boxes, levels, per_pass)
        del images  # in a large batch what is put in order below needs their room

        # Put back into the order of the queries.
        back = inverse_order(order)
        all_vectors = gather_rows(vectors)
        keys = {}
        for level in levels:
            of_level = cells.pop(level.name)
            keys[level.name] = LevelKeys(
                windows=to_device(windows[level.name].grid, device),
                valid=to_device(windows[level.name].valid, device),
                positives=exchange_rows(regions.pop(level.name), back),
                # "all": a set, whose order the loss does not see
                cells=gather_rows(of_level).then(lambda rows: rows.flatten(0, 1))
                if level.negatives == "all"
                else exchange_rows(of_level, back),
            )
        if back is not None:
            all_vectors = all_vectors.then(lambda rows: rows[to_device(back, device)])
        return Keys(all_vectors, len(views_k), keys)

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
        start = first_group * (len(images) // groups)
        here = slice(start, start + len(images))
        vectors, maps = (encoder or self.query)(images)
        dtype = matmul_dtype(images.device)
        shared = {"groups": groups, "temperature": self.config.temperature}
        with torch.autocast(images.device.type, enabled=False):
            found = {"instance": image_similarity(vectors, keys.own_vectors()[here], self.queue, **shared)}
            for level in self.config.levels:
                found[level.name] = region_similarity(
                    maps[level.name], keys.levels[level.name], level, here, matmul_dtype=dtype, **shared
                )
        weights = {"instance": self.config.instance_weight} | {level.name: level.weight for level in self.config.levels}
        losses = {name: each.loss for name, each in found.items()}
        losses["total"] = torch.stack([losses[name] * weight for name, weight in weights.items()]).sum()
        losses |= {f"accuracy/{name}": each.accuracy for name, each in found.items()}
        return losses | {f"valid/{level.name}": found[level.name].valid for level in self.config.levels}

    @torch.no_grad()
    def finish_step(self, keys: Keys) -> Tensor | None:
        """In training mode: all the processes' keys enter the queue, first in first out; running statistics move.

        Returns:
            0, or NaN if the statistics of a BatchNorm were not finite; None where nothing moved.
        """
        if not self.training:
            return None
        self._enqueue(keys.all_vectors.wait())
        return commit_statistics(self)

    def _move_key_encoder(self) -> None:
        """Move the key encoder towards the query encoder: key = momentum * key + (1 - momentum) * query."""
        average = get_ema_multi_avg_fn(self.config.key_momentum)
        average(tuple(self.key.parameters()), tuple(self.query.parameters()), 0)

    def _enqueue(self, vectors: Tensor) -> None:
        capacity = len(self.queue)
        newest = vectors[-capacity:].to(self.queue.dtype)
        first = self.queue_position + len(vectors) - len(newest)
        self.queue[(first + torch.arange(len(newest), device=self.queue.device)) % capacity] = newest
        self.queue_position.copy_((self.queue_position + len(vectors)) % capacity)
