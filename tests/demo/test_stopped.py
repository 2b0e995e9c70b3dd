"""A signal that a training of the demo lets pass, because it is in its last step, stops the demo after it."""

from __future__ import annotations

import signal

import pytest

from resim.demo.stopped import stops_after_training
from resim.errors import StoppedError
from resim.signals import STOP_SIGNALS, catch_termination


def finish(number: signal.Signals) -> None:
    """A training that a signal reaches in its last step."""
    with stops_after_training(), catch_termination():
        signal.raise_signal(number)


def stop(number: signal.Signals) -> None:
    """A training that a signal stops before its last step."""
    with stops_after_training(), catch_termination():
        signal.raise_signal(number)
        raise StoppedError("stopped: run is saved after step 3")


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_a_signal_in_the_last_step_stops_the_demo(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(StoppedError, match=r"^stopped$"):
        finish(number)
    assert signal.getsignal(number) is before


def test_without_a_signal_the_demo_goes_on() -> None:
    with stops_after_training(), catch_termination() as received:
        pass
    assert received == []


def test_a_training_that_a_signal_has_stopped_says_what_is_saved() -> None:
    with pytest.raises(StoppedError, match=r"saved after step 3"):
        stop(signal.SIGTERM)
