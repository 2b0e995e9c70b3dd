"""ReSim as in the paper, in one file: read this first. resim.py computes the same, faster and in less memory.

Shapes: N images of S x S px, R windows, C channels, M negatives. A group is a run of `group_size` consecutive images;
in the published program each process has one. Here one process computes the whole batch and whole logits matrices.

Source: Xiao et al., ICCV 2021 (arXiv 2103.12902), sections 3.1 to 3.3; He et al., arXiv 1911.05722 (momentum, queue,
shuffling); Jiang et al., arXiv 1807.11590 (Precise RoI Pooling).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resim.layers.grouped_norm import commit_statistics
from resim.model.config import ModelConfig
from resim.model.encoder import Encoder
from resim.regions.cells import key_cells
from resim.regions.pooling import precise_roi_pool
from resim.regions.windows import inside_view, map_windows
from resim.views.views import Views


class ReferenceReSim(nn.Module):
    """A query encoder, its momentum copy and a queue of keys; `forward` is a training step without the optimiser."""

    queue: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.query, self.key = Encoder(config), Encoder(config)
        self.key.load_state_dict(self.query.state_dict())
        self.key.requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(config.queue_size, config.dim), dim=1))
        self.oldest = 0  # row of the queue that the next key replaces

    def forward(self, views_q: Views, views_k: Views, order: Tensor | None = None) -> dict[str, Tensor]:
        """Losses of N query views against the key views of the same images; `order` shuffles the batch of keys."""
        groups = [range(i, i + self.config.group_size) for i in range(0, len(views_q), self.config.group_size)]

        # Encode the queries and, shuffled, the keys; BatchNorm normalises each group by itself (MoCo, section 3.3).
        vectors_q, maps_q = self.query(views_q.images)
        queries = F.normalize(vectors_q, dim=1)
        with torch.no_grad():
            self._update_key_encoder()
            order = torch.arange(len(views_k)) if order is None else order
            vectors_k, maps_k = self.key(views_k.images[order])
            back = torch.argsort(order)
            keys = F.normalize(vectors_k[back], dim=1)
            maps_k = {name: features[back] for name, features in maps_k.items()}

        # Image similarity (section 3.1): the other view of the image against earlier images.
        group_losses = [self._contrast(queries[g], keys[g], self.queue) for g in groups]
        losses = {"instance": torch.stack(group_losses).mean()}

        # Region similarity (section 3.2): the same window in the other view against the cells of the key maps.
        for level in self.config.levels:
            windows = level.windows(views_q.size)  # (R, 4), the same in every query view
            flips = {"flipped_q": views_q.flipped, "flipped_k": views_k.flipped}
            windows_k = map_windows(windows, views_q.crops, views_k.crops, views_q.size, **flips)  # (N, R, 4)
            windows, windows_k = windows.to(queries.device), windows_k.to(queries.device)
            shared = inside_view(windows_k, views_k.size)  # (N, R): in both views
            regions = F.normalize(precise_roi_pool(maps_q[level.name], windows, level.stride), dim=-1)  # (N, R, C)
            with torch.no_grad():
                positives = F.normalize(precise_roi_pool(maps_k[level.name], windows_k, level.stride), dim=-1)
                cells = key_cells(maps_k[level.name])  # (N, M / N, C)
            group_losses = []
            for g in groups:
                # on one host, "node" is "all"
                negatives = (cells[g] if level.negatives == "group" else cells).flatten(0, 1)
                group_losses.append(self._contrast(regions[g][shared[g]], positives[g][shared[g]], negatives))
            losses[level.name] = torch.stack(group_losses).mean()

        # The objective (section 3.3) is the weighted sum.
        weights = {"instance": self.config.instance_weight} | {level.name: level.weight for level in self.config.levels}
        losses["total"] = torch.stack([losses[name] * weight for name, weight in weights.items()]).sum()
        self._enqueue(keys)
        commit_statistics(self)  # once a step
        return losses

    def _contrast(self, queries: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """InfoNCE: mean over queries (n, C) of the cross entropy of the positive against the negatives (M, C)."""
        if len(queries) == 0:
            return queries.sum()  # 0 for a group without a shared window
        logits = torch.cat([(queries * positives).sum(dim=1, keepdim=True), queries @ negatives.T], dim=1)
        target = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        return F.cross_entropy(logits / self.config.temperature, target)

    def _update_key_encoder(self) -> None:
        momentum = self.config.key_momentum
        for key, query in zip(self.key.parameters(), self.query.parameters(), strict=True):
            key.copy_(momentum * key + (1 - momentum) * query)

    def _enqueue(self, keys: Tensor) -> None:
        rows = torch.arange(self.oldest, self.oldest + len(keys), device=keys.device) % len(self.queue)
        self.queue = self.queue.index_copy(0, rows, keys)  # not in place: backward needs the old queue
        self.oldest = (self.oldest + len(keys)) % len(self.queue)
