"""Finish the views of a batch on the training's device; on a GPU in a separate stream, during the previous step."""

from __future__ import annotations

from collections import deque

import torch

from resim.views.crops import ViewsConfig
from resim.views.loader import PairBatch
from resim.views.views import Views

_STEPS_AHEAD = 2  # limit of the host's lead over a GPU, whose memory the views of more steps would fill


class Finisher:
    """Copy a batch to the device and apply colour jitter, blur and normalisation to its views.

    On a GPU both happen in a separate stream while the previous step computes.
    """

    def __init__(self, config: ViewsConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._steps: deque[torch.Event] = deque()

    def __call__(self, batch: PairBatch) -> tuple[Views, Views]:
        """The query and key views of a batch."""
        if self._stream is None:
            return batch.views(self.config, self.device)
        if len(self._steps) == _STEPS_AHEAD:
            self._steps.popleft().synchronize()
        with torch.cuda.stream(self._stream):
            views = batch.views(self.config, self.device)
        step = torch.cuda.current_stream(self.device)
        step.wait_stream(self._stream)
        for side in views:
            side.images.record_stream(step)  # the allocator reuses its memory only after this step
        self._steps.append(step.record_event())
        return views
