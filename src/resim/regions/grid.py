"""Positions of windows along one axis of a view, as plain numbers: a config is checked without PyTorch."""

from __future__ import annotations


def window_starts(view_size: int, window: int, step: int, *, closed: bool = False) -> range:
    """The left or top edges of the windows along one axis of a view, px; arguments as in `windows.window_grid`.

    Raises:
        ValueError: no window fits into the view, or `window` or `step` is below 1 px.
    """
    if window < 1 or step < 1:
        raise ValueError(f"a window of {window} px at a step of {step} px: both must be at least 1 px")
    limit = view_size - window + closed
    if limit < 1:
        raise ValueError(
            f"no window of {window} px fits into a view of {view_size} px: use smaller windows or larger views"
        )
    return range(0, limit, step)
