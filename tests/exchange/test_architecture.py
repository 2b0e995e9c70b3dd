"""The one list of differences between a state_dict and a network, in the order missing, left over, shape, numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from resim.errors import UserError
from resim.exchange.networks.architecture import list_mismatches, refuse_infinite, shorten

EXPECTED = {"a.weight": (2, 3), "a.bias": (2,), "b.num_batches_tracked": ()}
STATE = {"a.weight": torch.zeros(2, 3), "a.bias": torch.zeros(2), "b.num_batches_tracked": torch.tensor(4)}


def test_a_state_dict_that_fits_has_no_mismatch() -> None:
    assert list_mismatches(EXPECTED, STATE) == ""


def test_all_mismatches_are_in_one_line() -> None:
    state = {"a.weight": torch.zeros(3, 2), "a.bias": torch.zeros(2, dtype=torch.int64)}
    assert list_mismatches(EXPECTED, state, ["c.weight", "d.weight"]) == (
        "1 missing (b.num_batches_tracked); 2 left over (c.weight, d.weight); 1 of another shape (a.weight (3, 2) for "
        "(2, 3)); 1 not of real numbers (a.bias)"
    )


def test_only_required_entries_are_missing() -> None:
    assert list_mismatches(EXPECTED, {}, required=["a.bias"]) == "1 missing (a.bias)"


def test_a_long_list_of_names_is_shortened() -> None:
    assert shorten(["a", "b", "c"]) == "a, b, c"
    assert shorten(["a", "b", "c", "d"]) == "a, b, c, ... 4 in all"


def test_variances_below_0_are_refused_and_none_at_all_are_not() -> None:
    refuse_infinite(Path("w.pt"), {"bn1.running_var": torch.zeros(0), "bn2.running_var": torch.zeros(2)})
    with pytest.raises(UserError, match=r"bn2\.running_var has variances below 0"):
        refuse_infinite(Path("w.pt"), {"bn2.running_var": torch.tensor([1.0, -1.0])})
