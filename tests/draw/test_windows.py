"""View pairs: each test searches the pixels for the windows."""

from __future__ import annotations

import numpy as np
import pytest

from resim.draw.windows import (
    HEADING_PX,
    MARGIN,
    PAIR_GAP,
    PALETTE,
    LevelWindows,
    PairPicture,
    choose_windows,
    draw_pairs,
)

GREY = np.full((100, 100, 3), 128, dtype=np.uint8)
ORANGE = PALETTE[0]


def grid(view: int, side: int, stride: int) -> np.ndarray:
    starts = range(0, view - side, stride)
    return np.array([(x, y, x + side, y + side) for y in starts for x in starts], dtype=np.float64)


def one_window(query: tuple[float, ...], key: tuple[float, ...], *, valid: bool) -> PairPicture:
    level = LevelWindows(name="P4", query=np.array([query]), key=np.array([key]), valid=np.array([valid]))
    return PairPicture(query=GREY, key=GREY, levels=(level,))


def views(pair: PairPicture, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """Both enlarged views, cut out of a sheet of one pair without title and source."""
    sheet = np.asarray(draw_pairs([pair], scale=scale))
    side, top = 100 * scale, MARGIN + HEADING_PX
    left = MARGIN + side + PAIR_GAP
    return (
        sheet[top : top + side, MARGIN : MARGIN + side],
        sheet[top : top + side, left : left + side],
    )


def test_a_window_is_drawn_at_its_scaled_place_in_the_same_colour_in_both_views() -> None:
    query, key = views(one_window((10, 20, 60, 70), (30, 5, 80, 95), valid=True), scale=3)
    # the coloured line lies 1 px inside the outer rim; the lower edge is free of the number
    assert tuple(query[70 * 3 - 3, 35 * 3]) == ORANGE
    assert tuple(query[45 * 3, 10 * 3 + 2]) == ORANGE
    assert tuple(query[45 * 3, 60 * 3 - 3]) == ORANGE
    assert tuple(key[95 * 3 - 3, 55 * 3]) == ORANGE
    assert tuple(key[50 * 3, 30 * 3 + 2]) == ORANGE
    for view, (x0, y0, x1, y1) in ((query, (30, 60, 180, 210)), (key, (90, 15, 240, 285))):
        drawn_y, drawn_x = np.nonzero((view != 128).any(axis=2))
        assert (drawn_x.min(), drawn_y.min(), drawn_x.max() + 1, drawn_y.max() + 1) == (x0, y0, x1, y1)


def test_by_default_a_view_is_336_px_wide() -> None:
    sheet = draw_pairs([PairPicture(query=GREY, key=GREY, levels=())])
    assert sheet.width == 2 * 336 + PAIR_GAP + 2 * MARGIN


@pytest.mark.parametrize("valid", [True, False])
def test_valid_windows_are_solid_and_invalid_ones_have_gaps(valid: bool) -> None:
    query, key = views(one_window((10, 20, 60, 70), (30, 20, 80, 70), valid=valid), scale=3)
    for view, x0 in ((query, 30), (key, 90)):
        lower_edge = (view[207, x0 + 1 : x0 + 149] == ORANGE).all(axis=1)
        gaps = int((np.diff(lower_edge.astype(int)) == -1).sum())
        assert (gaps == 0) == valid
        assert valid or gaps >= 4
        assert lower_edge.any()


def test_parts_outside_the_key_view_are_not_drawn() -> None:
    _, key = views(one_window((10, 20, 60, 70), (70, 20, 120, 70), valid=False), scale=3)
    assert (key[:, : 70 * 3] == 128).all()
    assert not (key[:, 70 * 3 :] == 128).all()
    _, key = views(one_window((10, 20, 60, 70), (100, 20, 150, 70), valid=False), scale=3)
    assert (key == 128).all()


@pytest.mark.parametrize(
    ("view", "side", "stride", "count"), [(224, 48, 32, 9), (224, 32, 24, 16), (128, 48, 32, 4), (64, 48, 32, 1)]
)
def test_chosen_windows_do_not_overlap(view: int, side: int, stride: int, count: int) -> None:
    windows = grid(view, side, stride)
    valid = windows[:, 0] >= 32  # the left columns are invalid
    level = LevelWindows(name="P4", query=windows, key=windows, valid=valid)
    chosen = choose_windows(level)
    assert len(chosen) == len(set(chosen.tolist())) == count
    corners = windows[chosen, :2]
    distance = np.abs(corners[:, None] - corners[None]).max(axis=2) + 1e9 * np.eye(count)
    assert (distance >= side).all()
    if count > 1:
        assert valid[chosen].any()
        assert not valid[chosen].all()


def test_the_only_valid_window_is_among_the_chosen() -> None:
    windows = grid(224, 48, 32)
    for i in range(len(windows)):
        valid = np.arange(len(windows)) == i
        assert i in choose_windows(LevelWindows(name="P4", query=windows, key=windows, valid=valid))


def test_without_levels_or_windows_nothing_is_drawn_on_the_views() -> None:
    query, key = views(PairPicture(query=GREY, key=GREY // 2, levels=()), scale=2)
    assert (query == 128).all()
    assert (key == 64).all()
    empty = LevelWindows(name="P4", query=np.zeros((0, 4)), key=np.zeros((0, 4)), valid=np.zeros(0, dtype=bool))
    query, _ = views(PairPicture(query=GREY, key=GREY, levels=(empty,)), scale=2)
    assert (query == 128).all()


def test_a_sheet_with_sources_titles_and_different_rows_is_deterministic() -> None:
    windows = grid(100, 24, 16)
    level = LevelWindows(name="P3", query=windows, key=windows * 0.5 - 20, valid=windows[:, 0] >= 40)
    pairs = [
        PairPicture(
            query=GREY,
            key=GREY,
            levels=(level, level),
            title="a very long title " * 30,
            source=np.full((50, 120, 3), 200, dtype=np.uint8),
            crops=np.array([[0, 0, 60, 50], [30, 5, 120, 45]], dtype=np.float64),
        ),
        PairPicture(query=GREY, key=GREY, levels=()),
    ]
    first, second = (np.asarray(draw_pairs(pairs)) for _ in range(2))
    assert np.array_equal(first, second)
    assert (first[:MARGIN] == 255).all()
    assert (first[:, -MARGIN:] == 255).all()


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one pair"):
        draw_pairs([])
    with pytest.raises(ValueError, match="scale must be 1 or more"):
        draw_pairs([PairPicture(query=GREY, key=GREY, levels=())], scale=0)
    with pytest.raises(ValueError, match="key view must be"):
        draw_pairs([PairPicture(query=GREY, key=GREY[:50], levels=())])
    windows = LevelWindows(name="P4", query=np.zeros((2, 4)), key=np.zeros((3, 4)), valid=np.zeros(2, dtype=bool))
    with pytest.raises(ValueError, match="P4: query and key"):
        draw_pairs([PairPicture(query=GREY, key=GREY, levels=(windows,))])
