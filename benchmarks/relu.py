"""Processor seconds of an encoder with bfloat16 ReLU through its bits and with PyTorch's: python benchmarks/relu.py

ResNet-50 with its FPN, 16 images of 224 px, one thread, both in turn in one process, median of four. Processor time,
not time on the clock, so that other work on the machine counts little.
"""

from __future__ import annotations

import statistics
import time
from unittest import mock

import torch
from torch import nn

from resim.kernels.cpu.relu import ReLU
from resim.model.encoder import Encoder, ModelConfig


def main() -> None:
    torch.set_num_threads(1)
    encoder = Encoder(ModelConfig(group_size=16)).train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(16, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    taken: dict[str, list[float]] = {}
    for turn in range(5):
        for name, forward in (("PyTorch's", nn.ReLU.forward), ("bits", ReLU.forward)):
            with mock.patch.object(ReLU, "forward", forward):
                start = time.process_time()
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                    encoder(images)
                middle = time.process_time()
                with torch.autocast("cpu", torch.bfloat16):
                    vectors, maps = encoder(images)
                (vectors.float().sum() + sum(features.float().mean() for features in maps.values())).backward()
                if turn:  # the first sets the libraries up
                    taken.setdefault(f"key encoder, {name}", []).append(middle - start)
                    taken.setdefault(f"query encoder, {name}", []).append(time.process_time() - middle)
    for name, seconds in taken.items():
        print(f"{name:<28}{statistics.median(seconds):6.2f} s ({min(seconds):.2f} to {max(seconds):.2f})")


if __name__ == "__main__":
    main()
