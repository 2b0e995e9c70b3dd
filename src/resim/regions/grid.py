"""Where windows begin on an axis of a view: plain numbers, so that configs are checked without PyTorch."""

from __future__ import annotations


def window_starts(view_size: int, window: int, step: int, *, closed: bool = False) -> range:
    """The near edges of the windows on one axis of the view, px; arguments as of `windows.window_grid`.

    Raises:
        ValueError: no window fits, or a size is not positive.
    """
    if window < 1 or step < 1:
        raise ValueError(f"a window of {window} px at a step of {step} px: both must be at least 1 px")
    limit = view_size - window + closed
    if limit < 1:
        raise ValueError(
            f"no window of {window} px fits into a view of {view_size} px: use smaller windows or larger views"
        )
    return range(0, limit, step)
