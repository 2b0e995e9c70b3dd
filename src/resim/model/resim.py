"""ReSim for training: a query encoder, its momentum copy, a queue of keys, and the losses between two views.

Read reference.py first: it computes the same in one short file. Here a step has three parts, so that it runs in bounded
memory and on several processes:

- `encode_keys`: momentum update, shuffling, forward pass of the key encoder, pooling of the windows from the key maps;
- `query_losses`, for some groups at a time: forward pass of the query encoder, losses; the caller runs backward;
- `finish_step`: the keys enter the queue, and the running statistics of BatchNorm are updated.

`forward` runs all three on a whole batch. A group is a run of `group_size` consecutive images.

Shapes: N images on this process of W, R windows an image, C channels of a level, D the global width.

Source: Xiao et al., ICCV 2021 (arXiv 2103.12902), sections 3.1 to 3.3; He et al., arXiv 1911.05722.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resim.distributed.rows import exchange_rows, gather_rows, inverse_order
from resim.layers.grouped_norm import commit_statistics, count_groups
from resim.model.config import ModelConfig
from resim.model.encoder import Encoder
from resim.model.keys import Keys, LevelKeys, map_to_keys, share_cells
from resim.model.losses import image_similarity, matmul_dtype, region_similarity, total_loss
from resim.model.momentum import EncoderForward, encode_shuffled, images_per_pass, narrow_images, update_key_encoder
from resim.transfers import to_device
from resim.views.views import Views


class ReSim(nn.Module):
    """The model of a recipe: `ReSim(resim_fpn().model)`.

    The initial weights are a function of `seed` alone; PyTorch's global generator is neither read nor changed.

    Raises:
        UserError: there is no backbone of that name.
    """

    queue: Tensor
    """(K, D), L2-normalised keys of earlier images."""
    queue_position: Tensor
    """Row of the oldest key, which the next key replaces."""

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
        """Compute one training step's losses for a whole batch; the caller runs `losses["total"].backward()`.

        In training mode this also updates the key encoder, the queue and the running statistics, once.

        Args:
            views_q: this process's N query views.
            views_k: the key views of the same images, in the same order and of the same size.
            order: permutation of the global batch for the key encoder (He et al., section 3.3), the same on every
                process; None: the order of the views.

        Returns:
            "instance", one entry a level such as "P4", and "total", the weighted sum: scalars with gradient, means
            over this process's groups. "accuracy/..." and "valid/...": shares in [0, 1], no gradient.

        Raises:
            ValueError: the query and key views differ in number or size, or the batch is larger than a group and not a
                multiple of its size.
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
        """Update the key encoder, encode all key views, and pool the windows from the key maps.

        A key map stays on the process that computes it: the windows are transferred to it, and the pooled vectors
        (positives) and the cells (negatives) are transferred from it.

        Args:
            views_q: the query views, of which only the crops are used here.
            views_k: the key views.
            order: as in `forward`.
            groups_at_a_time: groups in one forward pass; None: all. It changes memory, not results.
            encoder: called instead of `self.key` (a compiled form of it).

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

        # Momentum update (MoCo, section 3.2).
        if self.training:
            update_key_encoder(self.key, self.query, self.config.key_momentum)

        # Shuffle (MoCo, section 3.3): the process that encodes an image needs its windows too.
        boxes = {name: exchange_rows(to_device(mapped.boxes, device), order) for name, mapped in windows.items()}
        images = exchange_rows(narrow_images(views_k.images), order)

        # Encode, and pool each window from the key map (ReSim, section 3.2).
        vectors, regions, cells = encode_shuffled(encoder or self.key, images, boxes, levels, per_pass)
        del images  # frees memory for the exchanges below

        # Put everything back into the order of the queries.
        back = inverse_order(order)
        all_vectors = gather_rows(vectors)
        keys = {}
        for level in levels:
            level_cells = cells.pop(level.name)
            keys[level.name] = LevelKeys(
                windows=to_device(windows[level.name].grid, device),
                valid=to_device(windows[level.name].valid, device),
                positives=exchange_rows(regions.pop(level.name), back),
                cells=share_cells(level_cells, level, back),
            )
        if back is not None:
            all_vectors = all_vectors.then(lambda rows: rows[to_device(back, device)])
        return Keys(all_vectors, len(views_k), keys)

    def query_losses(
        self, images: Tensor, keys: Keys, *, first_group: int = 0, encoder: EncoderForward | None = None
    ) -> dict[str, Tensor]:
        """Compute the losses of some consecutive groups of this process's query views.

        Args:
            images: (n, 3, S, S), a whole number of groups.
            keys: the keys of the whole step.
            first_group: index of the group that `images` begin with, in this process's batch.
            encoder: called instead of `self.query` (DistributedDataParallel, a compiled form of it).

        Returns:
            As `forward`, means over these groups.
        """
        groups = count_groups(len(images), self.config.group_size)
        start = first_group * (len(images) // groups)
        part = slice(start, start + len(images))
        vectors, maps = (encoder or self.query)(images)
        dtype = matmul_dtype(images.device)
        settings = {"groups": groups, "temperature": self.config.temperature}
        with torch.autocast(images.device.type, enabled=False):
            # Image similarity (section 3.1).
            results = {"instance": image_similarity(vectors, keys.local_vectors()[part], self.queue, **settings)}
            # Region similarity (section 3.2).
            for level in self.config.levels:
                results[level.name] = region_similarity(
                    maps[level.name], keys.levels[level.name], level, part, matmul_dtype=dtype, **settings
                )
        # The objective (section 3.3), and what is reported of each loss.
        losses = {name: result.loss for name, result in results.items()}
        losses["total"] = total_loss(losses, self.config)
        losses |= {f"accuracy/{name}": result.accuracy for name, result in results.items()}
        return losses | {f"valid/{level.name}": results[level.name].valid for level in self.config.levels}

    @torch.no_grad()
    def finish_step(self, keys: Keys) -> Tensor | None:
        """In training mode, put the keys of all processes into the queue and update BatchNorm's running statistics.

        Returns:
            0, or NaN if the statistics of a BatchNorm were not finite; None in evaluation mode.
        """
        if not self.training:
            return None
        self._enqueue(keys.all_vectors.wait())
        return commit_statistics(self)

    def _enqueue(self, vectors: Tensor) -> None:
        """Replace the oldest keys of the queue, first in, first out."""
        capacity = len(self.queue)
        newest = vectors[-capacity:].to(self.queue.dtype)
        first = self.queue_position + len(vectors) - len(newest)
        self.queue[(first + torch.arange(len(newest), device=self.queue.device)) % capacity] = newest
        self.queue_position.copy_((self.queue_position + len(vectors)) % capacity)
