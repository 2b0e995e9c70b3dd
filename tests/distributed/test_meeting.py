"""The name of a start: one for all its processes, whatever an earlier start has left in torchrun's store."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]

from resim.distributed.meeting import _name_start


def meet(store: HashStore, count: int) -> list[str]:
    """The names that all processes of one start have."""
    deadline = time.monotonic() + 60
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda rank: _name_start(store, rank, count, deadline), range(count)))


def test_all_processes_have_the_same_name_and_every_start_another() -> None:
    store = HashStore()
    first, second = meet(store, 3), meet(store, 3)
    assert len(set(first)) == len(set(second)) == 1
    assert first[0] != second[0]


def test_a_question_of_a_process_that_has_ended_harms_nothing() -> None:
    store = HashStore()
    store.set("resim/question/1", "of an earlier start")
    store.set("resim/question/2", "of an earlier start")
    assert len(set(meet(store, 3))) == 1


def test_the_number_of_processes_may_change_from_start_to_start() -> None:
    store = HashStore()
    assert [len(set(meet(store, count))) for count in (4, 2, 3)] == [1, 1, 1]


def test_a_process_that_never_comes_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"ranks \[1\] did not ask"):
        _name_start(HashStore(), 0, 2, time.monotonic() - 1)
