"""Progress: bars on a terminal, lines elsewhere, and nothing where nothing is to be shown."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from resim.runs.bars import Bars, open_console, show_bar
from resim.runs.progress import Progress


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), width=120, force_terminal=terminal, highlight=False)


def text_of(target: Console) -> str:
    assert isinstance(target.file, io.StringIO)
    return target.file.getvalue()


def line(step: int, **values: float) -> dict[str, float]:
    """A line of metrics.jsonl, of epochs of three steps."""
    numbers = {"loss/total": 1.5, "lr": 0.03, "images_per_second": 7.0, "data_wait": 0.25}
    return {"step": step, "epoch": step // 3} | numbers | values


def test_a_bar_shows_its_title_and_how_much_is_done() -> None:
    target = console(terminal=True)
    with Bars(target) as bars:
        bar = bars.add("packing [a/b]", 8)  # no markup
        bar.update(2)
        bar.advance(3)
    assert "packing [a/b]" in text_of(target)
    assert "5/8" in text_of(target)


def test_a_bar_that_is_hidden_or_removed_is_not_shown() -> None:
    target = console(terminal=True)
    with Bars(target) as bars:
        bars.add("first", 2).set_visible(False)
        bars.add("second", 2).remove()
        bars.add("third", 2)
    assert "third" in text_of(target)
    assert "first" not in text_of(target)


def test_without_a_terminal_there_are_no_bars(capsys: pytest.CaptureFixture[str]) -> None:
    target = console(terminal=False)
    with Bars(target) as bars:
        bars.add("packing", 8).update(8)
    assert text_of(target) == ""
    with show_bar("packing", 8) as show_done:
        show_done(8)
    assert capsys.readouterr().out == ""


def test_a_training_prints_lines_where_there_is_no_terminal() -> None:
    target, watched = console(terminal=False), []
    with Progress(steps=6, epoch_steps=3, console=target, watch=lambda *done: watched.append(done)) as progress:
        progress.update(line(0))
        progress.update(line(1))  # less than ten seconds later
        progress.update(line(5, **{"loss/P4": 0.5, "accuracy/P4": 0.75}))
    first, last = text_of(target).splitlines()
    assert first.startswith("epoch 1/2  step 1/3  loss 1.500  lr 0.03  images/s 7.0  waiting for data 25%  left ")
    assert last.startswith("epoch 2/2  step 3/3  loss 1.500  P4 0.500  acc P4 75.0%  lr 0.03")
    assert last.endswith("left 0:00:00")
    assert watched == [(1, 6), (2, 6), (6, 6)]


def test_a_training_shows_its_last_numbers_below_the_bars() -> None:
    target = console(terminal=True)
    with Progress(steps=6, epoch_steps=3, console=target) as progress:
        progress.update(line(3))
        with progress.show_bar("evaluation", 4) as show_done:
            show_done(4)
    text = text_of(target)
    for part in ("epoch 2/2", "1/3", "4/6", "evaluation", "1.500"):
        assert part in text
    assert "evaluation" not in text[text.rindex("epoch 2/2") :]  # its bar is removed when it is done


def test_with_show_off_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(steps=2, show=False) as progress:
        progress.say("hello")
        progress.update(line(1))
    open_console(show=False).print("hello")
    assert capsys.readouterr().out == ""
