"""bad_files.txt is written however a run ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from resim.distributed.processes import Processes
from resim.errors import UserError
from resim.runs.bad_files import BadFiles
from resim.views.loader import BadFile, UnreadableError


def files(out: Path, rank: int = 0) -> BadFiles:
    return BadFiles(out, Processes(rank=rank, count=rank + 1, device=torch.device("cpu"), cores=1), 1.0)


@pytest.mark.parametrize("error", [UserError("no loss"), KeyboardInterrupt(), ZeroDivisionError()])
def test_any_error_lists_the_files(error: BaseException, tmp_path: Path) -> None:
    bad = files(tmp_path)
    bad.count(3, {"b.jpg": "truncated"})
    with pytest.raises(type(error)), bad.listed_on_error():
        raise error
    assert (tmp_path / "bad_files.txt").read_text() == "b.jpg\ttruncated\n"


def test_files_of_images_of_which_none_is_decoded_are_listed(tmp_path: Path) -> None:
    bad = files(tmp_path)
    bad.count(3, {"b.jpg": "truncated"})
    with pytest.raises(UnreadableError), bad.listed_on_error():
        raise UnreadableError("2 images in a row", [BadFile("c.jpg", "empty"), BadFile("a.jpg", "a text")])
    assert (tmp_path / "bad_files.txt").read_text() == "a.jpg\ta text\nb.jpg\ttruncated\nc.jpg\tempty\n"


def test_another_process_adds_its_files_to_the_list(tmp_path: Path) -> None:
    (tmp_path / "bad_files.txt").write_text("a.jpg\ta text\n")
    bad = files(tmp_path, rank=1)
    with pytest.raises(UnreadableError), bad.listed_on_error():
        raise UnreadableError("an image", [BadFile("c.jpg", "empty")])
    assert (tmp_path / "bad_files.txt").read_text() == "a.jpg\ta text\nc.jpg\tempty\n"


def test_without_bad_files_there_is_no_list(tmp_path: Path) -> None:
    with pytest.raises(UserError), files(tmp_path).listed_on_error():
        raise UserError("no loss")
    assert list(tmp_path.iterdir()) == []


def test_a_list_that_cannot_be_written_does_not_hide_the_error(tmp_path: Path) -> None:
    bad = files(tmp_path / "file" / "run")
    (tmp_path / "file").write_text("in the way")
    bad.count(3, {"b.jpg": "truncated"})
    with pytest.raises(UserError, match="no loss"), bad.listed_on_error():
        raise UserError("no loss")
