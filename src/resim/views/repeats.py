"""Find the files to which several paths of a list lead, with 20 bytes a path.

A data set has few or none, so that paths are compared only where the hashes of their files are equal.
"""

from __future__ import annotations

import functools
import os
from array import array
from collections.abc import Iterator, Sequence

import numpy as np

_FOLDERS = 2**16  # resolved paths of folders that are kept, some 20 MB


class ResolvedPaths:
    """The paths that files have without links; those of folders are kept, because resolving each file is slow."""

    def __init__(self) -> None:
        self._folder = functools.lru_cache(_FOLDERS)(os.path.realpath)

    def path_of(self, path: str, is_link: bool) -> str:
        """The resolved path of a file, which may itself be a link."""
        folder, name = os.path.split(path)
        file = os.path.join(self._folder(folder), name)  # noqa: PTH118
        return os.path.realpath(file) if is_link else file


def find_repeats(paths: Sequence[str], hashes: array[int]) -> np.ndarray:
    """(n,) int64: the indices, in order, of the paths to a file to which an earlier path leads.

    Args:
        paths: of files.
        hashes: of each path, the hash of the resolved path of its file.
    """
    table = np.frombuffer(hashes, dtype=np.int64)
    if not _has_repeats(table):
        return np.empty(0, dtype=np.int64)
    resolved = ResolvedPaths()
    repeats = array("q")
    for group in _groups(table):
        files = set()
        for index in group:
            path = paths[index]
            file = resolved.path_of(path, os.path.islink(path))  # noqa: PTH114
            if file in files:
                repeats.append(index)
            files.add(file)
    return np.sort(np.frombuffer(repeats, dtype=np.int64))


def _has_repeats(table: np.ndarray) -> bool:
    ordered = np.sort(table)
    return bool((ordered[1:] == ordered[:-1]).any())


def _groups(table: np.ndarray) -> Iterator[list[int]]:
    """The indices of each value that a table contains several times, in ascending order."""
    order = np.argsort(table, kind="stable")
    ordered = table[order]
    is_same = ordered[1:] == ordered[:-1]
    del ordered
    starts = np.flatnonzero(is_same & ~np.concatenate(([False], is_same[:-1])))
    ends = np.flatnonzero(is_same & ~np.concatenate((is_same[1:], [False]))) + 2
    for start, end in zip(starts, ends, strict=True):
        yield order[start:end].tolist()
