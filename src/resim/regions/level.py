"""A level of the region loss as plain data: its feature map, its windows and its negatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from resim.fields import AtLeast, check_fields
from resim.regions.grid import window_starts

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Level:
    """One feature map of the region loss, and the windows that slide over the query view for it.

    On the command line a level is written `P4:window=48,step=32,negatives=all`; omitted fields have their defaults.

    Raises:
        ValueError: the name or the value of a field is invalid.
    """

    name: str
    """P3, P4, P5: an FPN output. C3, C4, C5: a backbone stage followed by one convolution. The digit is log2 of the
    stride."""
    window: Annotated[int, AtLeast(1, "px")] = 48
    """Side of a window, px of the view."""
    step: Annotated[int, AtLeast(1, "px")] = 32
    """Distance between neighbouring windows, px of the view."""
    negatives: Literal["all", "node", "group"] = "all"
    """Negatives: the key cells of all images of all processes, of the processes of one host, or of the query's group
    only."""
    closed: bool = False
    """Also keep the windows that end exactly at the right or bottom edge of the view."""
    weight: Annotated[float, AtLeast(0)] = 1.0
    """Weight of this level's loss in the total."""

    def __post_init__(self) -> None:
        try:
            check_fields(self)
        except ValueError as error:
            raise ValueError(f"level {self.name}: {error}") from None
        if len(self.name) != 2 or self.name[0] not in "PC" or self.name[1] not in "345":
            raise ValueError(f"level {self.name!r}: a level is one of P3, P4, P5 (FPN) and C3, C4, C5 (backbone)")

    @property
    def stride(self) -> int:
        """Pixels of the view for each cell of the feature map."""
        return 2 ** int(self.name[1])

    @property
    def source(self) -> str:
        """The backbone stage that this level is built on: C3, C4 or C5."""
        return "C" + self.name[1]

    @property
    def from_fpn(self) -> bool:
        """Whether the level is an FPN output (P) and not a backbone stage (C)."""
        return self.name[0] == "P"

    def windows(self, view_size: int) -> Tensor:
        """The windows of this level over a view of `view_size` px: (R, 4) float64.

        Raises:
            ValueError: no window fits into the view.
        """
        self.check_windows(view_size)
        from resim.regions.windows import window_grid  # imports PyTorch, which a config does not need

        return window_grid(view_size, self.window, self.step, closed=self.closed)

    def check_windows(self, view_size: int) -> None:
        """Check that a window fits into a view of `view_size` px.

        Raises:
            ValueError: no window fits.
        """
        try:
            window_starts(view_size, self.window, self.step, closed=self.closed)
        except ValueError as error:
            raise ValueError(f"level {self.name}: {error}") from None

    @staticmethod
    def parse(text: str) -> Level:
        """Parse `P4:window=48,step=32,negatives=all,closed=false,weight=1`, the inverse of `str(level)`.

        Raises:
            ValueError: a field is unknown or its value is invalid.
        """
        name, _, rest = text.partition(":")
        readers = {"window": int, "step": int, "negatives": str, "closed": _parse_bool, "weight": float}
        kinds = {int: "a whole number", float: "a number", _parse_bool: "true or false"}
        fields = {}
        for item in filter(None, rest.split(",")):
            key, _, value = item.partition("=")
            if key not in readers:
                raise ValueError(f"level {name}: no field {key!r}: the fields are {', '.join(readers)}")
            try:
                fields[key] = readers[key](value)
            except ValueError:
                raise ValueError(f"level {name}: {key}={value!r} is not {kinds[readers[key]]}") from None
        return Level(name=name, **fields)

    def __str__(self) -> str:
        closed = "true" if self.closed else "false"
        return (
            f"{self.name}:window={self.window},step={self.step},negatives={self.negatives},"
            f"closed={closed},weight={str(self.weight).removesuffix('.0')}"
        )


def _parse_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"
