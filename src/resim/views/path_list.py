"""A list of paths that takes few bytes a path, for data sets of millions of images."""

from __future__ import annotations

import functools
import hashlib
import itertools
import operator
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from resim.views.walk import PassedOver

_BLOCK = 32  # paths that share what all of them begin with


class PathList(Sequence[str]):
    """Paths as bytes, in blocks that store once what all of their paths begin with.

    The list keeps no Python object for a path, so that loader processes share its memory.
    """

    def __init__(self, paths: Iterable[str], shards: Sequence[int] = (), passed: PassedOver | None = None) -> None:
        self.shards = tuple(shards)
        """Number of images in each shard, in order; empty unless all images are in shards."""
        self.passed = passed or PassedOver()
        """Files in the folders that are not images, counted by reason."""
        heads, tails = bytearray(), bytearray()
        # of each block the end of its head, and the start of its tails; of each tail its end within them
        head_ends, tail_starts, tail_ends = array("q"), array("q"), array("I")
        encoded = map(os.fsencode, paths)
        while block := list(itertools.islice(encoded, _BLOCK)):
            head = _common_start(block)
            heads += head
            head_ends.append(len(heads))
            tail_starts.append(len(tails))
            for path in block:
                tails += path[len(head) :]
                tail_ends.append(len(tails) - tail_starts[-1])
        self._heads, self._tails = (np.frombuffer(letters, dtype=np.uint8) for letters in (heads, tails))
        self._head_ends, self._tail_starts = (np.frombuffer(p, dtype=np.int64) for p in (head_ends, tail_starts))
        self._tail_ends = np.frombuffer(tail_ends, dtype=np.uintc)

    def __len__(self) -> int:
        return len(self._tail_ends)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"path {index} of {len(self)}")
        block, place = divmod(index, _BLOCK)
        start = int(self._tail_starts[block])
        first = start + int(self._tail_ends[index - 1]) if place else start
        tail = self._tails[first : start + int(self._tail_ends[index])]
        return os.fsdecode(self._head(block) + tail.tobytes())

    def __iter__(self) -> Iterator[str]:
        for block in self._blocks():
            yield from map(os.fsdecode, block)

    def _head(self, block: int) -> bytes:
        return self._heads[self._head_ends[block - 1] if block else 0 : self._head_ends[block]].tobytes()

    def _blocks(self) -> Iterator[list[bytes]]:
        for block, start in enumerate(self._tail_starts.tolist()):
            head = self._head(block)
            ends = self._tail_ends[block * _BLOCK : (block + 1) * _BLOCK].tolist()
            tails = self._tails[start : start + ends[-1]].tobytes()
            yield [head + tails[first:end] for first, end in itertools.pairwise([0, *ends])]

    def note(self) -> str:
        """One line with the number of images and of files passed over, by reason; empty if none was passed over."""
        return f"{len(self):,} image{'s' if len(self) != 1 else ''}; {self.passed}" if self.passed else ""

    def fingerprint(self) -> str:
        """A hash of the file names in their order, without folders: it does not change if a data set is moved."""
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        digest, separator = hashlib.sha256(), os.fsencode(os.sep)
        for block in self._blocks():
            digest.update(b"".join(path.rpartition(separator)[2] + b"\0" for path in block))
        return digest.hexdigest()[:16]


def _common_start(texts: Sequence[bytes]) -> bytes:
    """What all texts begin with."""
    first, last = min(texts), max(texts)
    pairs = enumerate(zip(first, last, strict=False))
    return first[: next((place for place, (a, b) in pairs if a != b), len(first))]
