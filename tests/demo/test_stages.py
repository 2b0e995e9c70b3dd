"""The demo's display: what is under way, how long it takes, how much time is left."""

from __future__ import annotations

import io
import time

from rich.console import Console

from resim.demo.stages import Stages


def shown(began: float, *, terminal: bool) -> str:
    """What two stages print, the second of which a plan leaves out; ten minutes, begun at the time given."""
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=terminal, highlight=False)
    with Stages(["measure", "train", "report"], 600, began, console) as story:
        with story.stage("measure") as watch:
            watch(1, 2)
        story.expect({"train": 130.0})
        with story.stage("train") as watch:
            watch(3, 3)
    return file.getvalue()


def test_each_stage_says_how_long_it_takes_and_how_much_time_is_left() -> None:
    lines = shown(time.perf_counter(), terminal=False).splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["measure", "measure:", "train", "train:"]
    assert "about" not in lines[0]  # nothing is planned yet
    assert lines[2].startswith("train ... (about 2 min 10 s; ")
    assert all(lines[at].endswith(" left)") for at in (0, 2))


def test_minutes_that_are_over_are_said_to_be_over() -> None:
    lines = shown(time.perf_counter() - 3600, terminal=False).splitlines()
    assert all(lines[at].endswith(" over)") for at in (0, 2))


def test_a_terminal_has_a_bar_for_each_stage_of_the_plan() -> None:
    text = shown(time.perf_counter(), terminal=True)
    assert "all of it" in text
    last = text[text.rindex("measure") :]
    assert "train" in last
    assert "report" not in last  # the plan leaves it out
