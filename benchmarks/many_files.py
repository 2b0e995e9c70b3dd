"""Bytes a file that a list of many images takes: while it is made, while it is kept, and for the order of an epoch.

The files are simulated: folders of a thousand images each, which the operating system is not asked for.

    python benchmarks/many_files.py --files 1000000
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

from resim.views import folder
from resim.views.loader import epoch_order

IN_FOLDER = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    files: int = parser.parse_args().files

    def walk(root: str, *_: Any, **__: Any) -> Iterator[tuple[str, bool]]:
        for number in range(files):
            yield f"{root}/{number // IN_FOLDER:06d}/{number:012d}.jpg", False

    folder.walk_files = walk  # type: ignore[assignment]
    tracemalloc.start()
    start = time.perf_counter()
    paths = folder.find_images("/")
    listing = time.perf_counter() - start
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    start = time.perf_counter()
    order = epoch_order(len(paths), seed=0, epoch=0)
    _, with_order = tracemalloc.get_traced_memory()
    print(f"{len(paths):,} files of {len(paths[0])} letters")
    print(f"listing: at most {peak / files:.0f} bytes a file, {listing:.1f} s (with memory traced)")
    print(f"the list: {kept / files:.0f} bytes a file")
    print(f"the order of an epoch: {(with_order - kept) / files:.0f} bytes a file, {time.perf_counter() - start:.1f} s")
    assert len(order) == files


if __name__ == "__main__":
    main()
