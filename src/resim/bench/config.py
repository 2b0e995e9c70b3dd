"""The settings of `resim bench`, as plain data, without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from resim.fields import Above, AtMost, check_fields


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What is measured, and for how long."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: a GPU if there is one."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """Precision of convolutions; auto: bf16 where it is faster."""
    compile: bool = False
    """Compile the encoders with torch.compile."""
    seconds: Annotated[float, Above(0), AtMost(3600)] = 10.0
    """Seconds of each measurement, after a first turn that does not count."""
    compare: bool = False
    """Also run the reference implementation, and ours in float32 and the chosen precision, each in its process."""

    def __post_init__(self) -> None:
        check_fields(self)
