"""Bytes a file that a list of many images takes: while it is made, while it is kept, and for the order of an epoch.

The files are simulated: folders whose entries the operating system is not asked for. `--in-folder` sets how many images
a folder has. `--list` simulates a text file of paths instead, whose lines are real and whose images are not.

    python benchmarks/many_files.py --files 1000000
    python benchmarks/many_files.py --files 1000000 --list
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from resim.views import listed_files, walk
from resim.views.folder import find_images
from resim.views.loader import epoch_order

ROOT = "/simulated"


@dataclass(frozen=True, slots=True)
class Entry:
    """A simulated entry of a folder, with the part of `os.DirEntry` that the walk uses."""

    path: str
    name: str
    folder: bool

    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return self.folder

    def is_file(self) -> bool:
        """Whether it is a file."""
        return not self.folder

    def is_symlink(self) -> bool:
        """No entry is a link."""
        return False


def simulate_folders(files: int, in_folder: int) -> None:
    """Let the walk find `files` images in folders below `ROOT`, of which none exists."""
    folders = -(-files // in_folder)

    def scan(folder: str) -> contextlib.AbstractContextManager[Iterator[Entry]]:
        if folder == ROOT:
            names = (f"{number:06d}" for number in range(folders))
            return contextlib.nullcontext(Entry(f"{ROOT}/{name}", name, True) for name in names)
        first = int(folder.rpartition("/")[2]) * in_folder
        # 7919 is a prime: the names come in no order
        order = range(in_folder) if in_folder % 7919 == 0 else (n * 7919 % in_folder for n in range(in_folder))
        names = (f"{first + number:012d}.jpg" for number in order if first + number < files)
        return contextlib.nullcontext(Entry(f"{folder}/{name}", name, False) for name in names)

    def identity(folder: str) -> tuple[int, int]:
        return 0, hash(folder)

    walk._scan = scan  # type: ignore[assignment]
    walk._identity = identity


def write_list(path: Path, files: int) -> None:
    """A list of `files` images, of which none exists."""
    with path.open("w") as file:
        file.writelines(f"{ROOT}/{number // 1000:06d}/{number:012d}.jpg\n" for number in range(files))
    listed_files._is_there = lambda image: True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--in-folder", type=int, default=1000)
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    files: int = options.files
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "list.txt" if options.list else "")
        if options.list:
            write_list(source, files)
        simulate_folders(files, options.in_folder)
        measure(str(source) if options.list else ROOT, files)


def measure(source: str, files: int) -> None:
    """Print what the list takes, and the order of an epoch."""
    isdir = walk.os.path.isdir
    walk.os.path.isdir = lambda path: path == ROOT or isdir(path)  # type: ignore[assignment]
    tracemalloc.start()
    start = time.process_time()
    paths = find_images(source)
    listing = time.process_time() - start
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    start = time.process_time()
    order = epoch_order(len(paths), seed=0, epoch=0)
    shuffling = time.process_time() - start
    _, with_order = tracemalloc.get_traced_memory()
    print(f"{len(paths):,} files of {len(paths[0])} letters, {source}")
    print(f"listing: at most {peak / files:.0f} bytes a file, {listing:.0f} s of a core (with memory traced)")
    print(f"the list: {kept / files:.1f} bytes a file")
    print(f"the order of an epoch: {(with_order - kept) / files:.1f} bytes a file, {shuffling:.1f} s of a core")
    print(f"the process: at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")
    assert len(order) == len(paths) == files
    assert paths[files - 1] == max(paths[index] for index in range(max(0, files - 1000), files))


if __name__ == "__main__":
    main()
