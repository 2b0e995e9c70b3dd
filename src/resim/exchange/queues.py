"""The queue of a file in a run whose queue may have another size.

Shapes: K keys of the file's queue, D the width of its vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from resim.model.encoder import ModelConfig


def fit_queue(
    queue: Tensor | None, position: Tensor | None, model: ModelConfig, head_fits: bool
) -> tuple[Tensor | None, Tensor | None, str]:
    """The queue with which a run starts from a file.

    Keys are negatives only for the head that computed them. Of a larger queue the newest keys are taken; a smaller one
    is not filled up, because random keys are not the output of a head.

    Args:
        queue: (K, D), or None where the file has none.
        position: of the next key to be replaced, the oldest one.
        model: the network of the run, with the size of its queue.
        head_fits: whether the run takes the file's head.

    Returns:
        The queue and its position, None and None where it starts new; and the reason, for messages.
    """
    size = model.queue_size
    if queue is None or queue.dim() != 2 or not len(queue):
        return None, None, f"{size} keys, random: the file has none"
    if not head_fits or queue.shape[1] != model.dim:
        return None, None, f"{size} keys, random: the file's {len(queue)} keys belong to another head"
    is_number = position is not None and position.numel() == 1 and position.dtype in (torch.int64, torch.int32)
    start = int(position) % len(queue) if position is not None and is_number else 0
    if len(queue) == size:
        return queue, torch.tensor(start), f"{size} keys"
    if len(queue) < size:
        return None, None, f"{size} keys, random: the file has only {len(queue)}"
    newest = torch.roll(queue, -start, dims=0)[-size:]
    return newest, torch.tensor(0), f"the newest {size} of {len(queue)} keys"
