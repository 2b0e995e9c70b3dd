"""What is fuzzed: for each target whole inputs to begin with, and a function that reads one."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from resim.errors import UserError
from tests.fuzz import checkpoints, commands, labels, pictures
from tests.fuzz.mutate import mutate_bytes, mutate_tree, to_json


@dataclass(frozen=True, kw_only=True)
class Target:
    """One reader.

    Attributes:
        name: on the command line.
        prepare: writes what the reader needs beside the input into an empty folder.
        run: reads an input in that folder.
        seeds: whole inputs.
        trees: whole inputs as plain data, which `encode` writes as bytes.
        encode: how a tree is written.
        refusals: the exceptions that are a clear error.
        surroundings: a context in which inputs are made and read.
    """

    name: str
    run: Callable[[bytes, Path], object]
    prepare: Callable[[Path], object] = lambda folder: None
    seeds: Callable[[], Sequence[bytes]] = lambda: ()
    trees: Callable[[], Sequence[Any]] = lambda: ()
    encode: Callable[[Any, Random], bytes] = lambda tree, rng: to_json(tree)
    refusals: tuple[type[BaseException], ...] = (UserError,)
    surroundings: Callable[[], AbstractContextManager[object]] = nullcontext

    def make(self, seed: int, index: int) -> bytes:
        """Input number `index` of a seed: always the same bytes."""
        rng = Random(f"{seed} {self.name} {index}")
        seeds, trees = _cached(self.seeds), _cached(self.trees)
        if trees and (not seeds or rng.random() < 0.6):
            data = self.encode(mutate_tree(rng.choice(trees), rng), rng)
            return mutate_bytes(data, rng, (data,)) if rng.random() < 0.25 else data
        data = rng.choice(seeds)
        return data if index < len(seeds) else mutate_bytes(data, rng, seeds)

    def fresh(self, folder: Path) -> Path:
        """An empty folder with what the reader needs, and a canary next to it that nothing may read."""
        shutil.rmtree(folder, ignore_errors=True)
        inside = folder / "inside" / "deep"
        inside.mkdir(parents=True)
        for place in (folder, folder / "inside") if self.name != "yolo" else ():  # its data.yaml names any folder
            (place / "outside.png").write_bytes(pictures.canary())
        self.prepare(inside)
        return inside


@functools.cache
def _cached(make: Callable[[], Sequence[Any]]) -> Sequence[Any]:
    return make()


TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target(name="picture", run=pictures.read_picture, seeds=pictures.pictures, refusals=pictures.REFUSALS),
        Target(name="tar", run=pictures.read_tar, seeds=pictures.tars, refusals=(UserError, OSError)),
        Target(name="tar-index", run=pictures.read_index, prepare=pictures.with_tar, trees=pictures.indices,
               refusals=(UserError, OSError)),
        Target(name="coco", run=labels.read_coco, prepare=labels.with_pictures, trees=labels.coco_trees),
        Target(name="voc", run=labels.read_voc, prepare=labels.with_voc, seeds=labels.voc_seeds),
        Target(name="yolo", run=labels.read_yolo, prepare=labels.with_yolo, seeds=labels.yolo_seeds),
        Target(name="cityscapes", run=labels.read_cityscapes, prepare=labels.with_cityscapes,
               trees=labels.cityscapes_trees),
        Target(name="results", run=labels.read_results, prepare=labels.with_truth, trees=labels.results_trees),
        Target(name="checkpoint", run=checkpoints.read, seeds=checkpoints.seeds, trees=checkpoints.trees,
               encode=checkpoints.encode, surroundings=checkpoints.tiny_networks),
        Target(name="detector", run=checkpoints.read_detector, trees=checkpoints.detectors, encode=checkpoints.encode,
               surroundings=checkpoints.tiny_networks),
        Target(name="start", run=checkpoints.read_start, trees=checkpoints.trees, encode=checkpoints.encode,
               surroundings=checkpoints.tiny_networks),
        Target(name="import", run=checkpoints.import_file, trees=checkpoints.trees, encode=checkpoints.encode,
               surroundings=checkpoints.tiny_networks),
        Target(name="pickle", run=checkpoints.read_opcodes, seeds=checkpoints.pickles),
        Target(name="detectron2", run=checkpoints.read, trees=checkpoints.detectron2_trees, encode=checkpoints.encode,
               surroundings=checkpoints.tiny_networks),
        Target(name="hub", run=checkpoints.read_hub, prepare=checkpoints.with_weights, trees=checkpoints.configs),
        Target(name="recipe", run=commands.read_recipe, trees=commands.recipes),
        Target(name="run", run=commands.read_run, prepare=commands.with_run, seeds=commands.metrics),
        Target(name="arguments", run=commands.parse, seeds=commands.arguments),
        Target(name="explorer", run=commands.request, prepare=commands.with_picture, seeds=commands.requests),
    )
}  # fmt: skip
