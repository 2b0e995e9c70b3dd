"""Read a checkpoint of another program: what it is, which entries are loaded, new and left over."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from resim.cli.recipe_options import pretrain_recipe
from resim.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `resim import`."""

    file: Annotated[Path, tyro.conf.Positional]
    """A checkpoint of any program that holds a ResNet, or of our own; a run's or hub folder; an index of shards."""
    out: Path | None = None
    """Checkpoint to write, from which pre-training can start (--start-from), and its recipe next to it as .json."""
    recipe: str | None = None
    """Recipe that will be trained, by name or as a .json file; default: what the file says."""
    licence: str | None = None
    """Licence of the weights, such as BSD-3-Clause, where the file proves none; runs and exports carry it."""
    prefix: str | None = None
    """Which of several networks to take, by what stands before its names, such as teacher.backbone."""
    verbose: bool = False
    """List every entry."""


def run(options: Options) -> None:
    """Print what the file contains; write the checkpoint where --out names one.

    Raises:
        UserError: as `import_state` and `write_import`; options that cannot work.
    """
    if options.out is not None and options.out.suffix != ".pt":
        raise UserError(f"--out {options.out}: must end in .pt")
    if options.out is not None and options.out.is_dir():
        raise UserError(f"--out {options.out}: is a folder, a file is needed")

    from resim.cli.entries import import_lines
    from resim.exchange.training_state import import_state
    from resim.exchange.write_import import write_import

    recipe = pretrain_recipe(options.recipe) if options.recipe else None
    imported = import_state(options.file, recipe, options.prefix, licence=options.licence)
    if options.out is not None and options.out.exists() and options.out.samefile(imported.weights.path):
        raise UserError(f"--out {options.out}: is the file that was read: name another")
    for line in import_lines(imported, verbose=options.verbose):
        print(line)
    for line in write_import(options.out, imported) if options.out is not None else ():
        print(line)
