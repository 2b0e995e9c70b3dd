"""The last part of making views, on the training's device: on a GPU beside the step before, on a stream of its own."""

from __future__ import annotations

from collections import deque

import torch

from resim.views.crops import ViewsConfig
from resim.views.loader import PairBatch
from resim.views.views import Views

_STEPS_AHEAD = 2  # the host may be this far ahead of a GPU; the views of more steps would fill its memory


class Finisher:
    """Call it with a batch to have its views on the device, colours, blur and normalisation done.

    On a GPU the pixels travel and the views are finished on a stream of their own while the step before computes.
    """

    def __init__(self, config: ViewsConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._steps: deque[torch.Event] = deque()

    def __call__(self, batch: PairBatch) -> tuple[Views, Views]:
        """Query and key views of a batch."""
        if self._stream is None:
            return batch.views(self.config, self.device)
        if len(self._steps) == _STEPS_AHEAD:
            self._steps.popleft().synchronize()
        with torch.cuda.stream(self._stream):
            views = batch.views(self.config, self.device)
        step = torch.cuda.current_stream(self.device)
        step.wait_stream(self._stream)
        for side in views:
            side.images.record_stream(step)  # its memory is not used anew before the step is done with it
        self._steps.append(step.record_event())
        return views
