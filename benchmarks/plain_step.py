"""The training step written plainly, as this field's programs are: float32, whole logits, loops over parameters.

Same network, same images, same windows, same losses (the benchmark prints both). It is what the package's own step is
measured against.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resim.model.encoder import Encoder, ModelConfig
from resim.regions.level import key_cells
from resim.regions.pooling import precise_roi_pool
from resim.regions.windows import inside_view, map_windows
from resim.views.views import Views


class PlainReSim(nn.Module):
    """MoCo v2 and the region losses for one group of images."""

    queue: Tensor

    def __init__(self, config: ModelConfig, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.config = config
        self.query, self.key = Encoder(config), Encoder(config)
        self.register_buffer("queue", F.normalize(torch.randn(config.queue_size, config.dim), dim=1))
        self.key.load_state_dict(self.query.state_dict())
        self.key.requires_grad_(False)
        self.position = 0

    def forward(self, views_q: Views, views_k: Views) -> dict[str, Tensor]:
        """The losses of `ReSim.forward`."""
        temperature = self.config.temperature
        with torch.no_grad():
            for key, query in zip(self.key.parameters(), self.query.parameters(), strict=True):
                key.data = key.data * self.config.key_momentum + query.data * (1 - self.config.key_momentum)
            keys, maps_k = self.key(views_k.images)
            keys = F.normalize(keys, dim=1)
        queries, maps_q = self.query(views_q.images)
        queries = F.normalize(queries, dim=1)
        logits = torch.cat([(queries * keys).sum(1, keepdim=True), queries @ self.queue.clone().T], dim=1) / temperature
        losses = {"instance": F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))}
        for level in self.config.levels:
            windows = level.windows(views_q.size)
            mapped = map_windows(windows, views_q.crops, views_k.crops, views_q.size)
            valid = inside_view(mapped, views_q.size).flatten()
            regions = F.normalize(precise_roi_pool(maps_q[level.name], windows, level.stride), dim=-1).flatten(0, 1)
            with torch.no_grad():
                boxes = mapped * valid.view(len(mapped), -1, 1)
                positives = F.normalize(precise_roi_pool(maps_k[level.name], boxes, level.stride), dim=-1).flatten(0, 1)
                negatives = key_cells(maps_k[level.name]).flatten(0, 1)
            logits = torch.cat([(regions * positives).sum(1, keepdim=True), regions @ negatives.T], dim=1) / temperature
            losses[level.name] = F.cross_entropy(logits[valid], torch.zeros(int(valid.sum()), dtype=torch.long))
        losses["total"] = torch.stack(list(losses.values())).sum()
        end = self.position + len(keys)
        self.queue[self.position : end] = keys
        self.position = end % self.config.queue_size
        return losses
