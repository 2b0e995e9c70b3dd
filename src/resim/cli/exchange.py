"""The verbs that exchange weights with other programs: `resim import` and `resim export`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from resim.cli.options import read_options, recipe_called
from resim.errors import UserError
from resim.exchange.licence import licence_line
from resim.exchange.targets import WHOLE, FpnNorm, Target

if TYPE_CHECKING:
    from resim.exchange.export import Exported
    from resim.exchange.training_state import Imported


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Options of `resim import`."""

    file: Annotated[Path, tyro.conf.Positional]
    """A checkpoint of any program that holds a ResNet, or of our own; a run's or hub folder; an index of shards."""
    out: Path | None = None
    """Checkpoint to write, from which pre-training can start (--start-from), and its recipe beside it as .json."""
    recipe: str | None = None
    """Recipe that will be trained, by name or as a .json file; default: what the file says."""
    licence: str | None = None
    """Licence of the weights, such as BSD-3-Clause, where the file proves none; runs and exports carry it."""
    prefix: str | None = None
    """Which of several networks to take, by what stands before its names, such as teacher.backbone."""
    verbose: bool = False
    """List every entry."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of `resim export`."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A checkpoint, a run's folder (of detect train too), or any file that `resim import` reads."""
    to: Target
    """Format; torchvision-detection, safetensors and hub take a detector run whole, the others its backbone."""
    out: Path | None = None
    """File to write (a folder with --to hub); default: RECIPE-FORMAT in the working folder."""
    fpn_norm: FpnNorm = "auto"
    """BatchNorm after FPN convolutions: keep as trained, plain (folded away), batchnorm (put in); auto: batchnorm for
    detectron2, else keep. Features stay the same."""
    licence: str | None = None
    """Licence of the weights, such as Apache-2.0, for the metadata and the card, where their file proves none."""
    probes: Path | None = None
    """JSON of probe results for the model card; default: what the run's probe.json says of this file."""


def import_verb(argv: Sequence[str]) -> None:
    """Read a checkpoint of another program: what it is, which entries are loaded, new and left over."""
    options = read_options(ImportOptions, argv, "import", import_verb.__doc__ or "")
    if options.out is not None and options.out.suffix != ".pt":
        raise UserError(f"--out {options.out}: must end in .pt")
    if options.out is not None and options.out.is_dir():
        raise UserError(f"--out {options.out}: is a folder, a file is needed")

    from resim.exchange.training_state import import_state
    from resim.exchange.weights import read_weights
    from resim.runs.checkpoints import save_checkpoint, write_atomically

    recipe = recipe_called(options.recipe) if options.recipe else None
    imported = import_state(options.file, recipe, options.prefix, licence=options.licence)
    if options.out is not None and options.out.exists() and options.out.samefile(imported.weights.path):
        raise UserError(f"--out {options.out}: is the file that was read: name another")
    _print_import(imported, verbose=options.verbose)
    if options.out is None:
        return
    save_checkpoint(options.out, imported.state)
    again = read_weights(options.out)
    kept = {name.removeprefix("query.") for name in imported.loaded if name.startswith("query.")}
    different = [name for name in kept if not again.tensors[name].equal(imported.weights.tensors[name])]
    if different:
        raise UserError(f"{options.out}: {different[0]} was not read as it was written")
    text = json.dumps(imported.recipe.to_json(), indent=2) + "\n"
    stored = options.out.with_suffix(".json")
    write_atomically(stored, lambda file: file.write(text.encode()))
    print(f"wrote {options.out}, bit-equal when read again, and its recipe {stored}")
    epoch = imported.weights.epoch
    more = f" --start-epoch {epoch} --epochs {2 * epoch}" if epoch else ""
    print(f"go on with: resim pretrain DIR --recipe {stored} --start-from {options.out}{more}")


def export_verb(argv: Sequence[str]) -> None:
    """Write weights for torchvision, Detectron2, timm, the hub or ONNX, verified there against our features."""
    options = read_options(ExportOptions, argv, "export", export_verb.__doc__ or "")

    done = _export(options)
    print(f"read {done.weights.path}: {done.weights.kind}")
    for note in done.notes:
        print(note)
    _list("left out", done.left_out)
    _list(f"starts new in {done.written.target}", done.written.starts_new)
    if done.differences is None:
        print(f"could not verify: {done.written.target.partition(',')[0]} is not installed here")
    else:
        told = ", ".join(f"{name} {value:.1e}" for name, value in done.differences.items())
        what = "features and detections" if "boxes" in done.differences else "features"
        print(f"verified in {done.written.target}: largest difference from our {what}: {told}")
    print(licence_line(done.weights.licence, done.weights.licence_source))
    print(f"wrote {', '.join(map(str, done.paths))}")
    print(f"load it: {done.written.load}")


def _export(options: ExportOptions) -> Exported:
    """A detector of ours goes whole to the targets that take one; of anything else the encoder is exported."""
    from resim.detection.checkpoint import holds_detector
    from resim.exchange.export import export

    settings = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    path, probes = settings.pop("checkpoint"), settings.pop("probes")
    if options.to not in WHOLE or not holds_detector(path):
        return export(path, **settings, probes=probes)
    if probes is not None:
        raise UserError(f"--probes {probes}: goes with pre-trained networks; {path} is a detector, leave it out")

    from resim.detection.export import export_detector  # slow to import: where there is a detector

    return export_detector(path, **settings)


def _print_import(imported: Imported, *, verbose: bool) -> None:
    weights = imported.weights
    for text in weights.warnings:
        print(f"warning: {text}")
    print(f"{weights.path}: {weights.kind}")
    if weights.origin:
        print(f"origin: {weights.origin}")
    print(licence_line(weights.licence, weights.licence_source))
    if weights.passed_over:
        kinds = weights.passed_over if verbose else weights.passed_over[:6]
        more = f", ... {len(weights.passed_over)} kinds in all" if len(kinds) < len(weights.passed_over) else ""
        print(f"passed over, as it is no plain data: {', '.join(kinds)}{more}")
    show = _list if verbose else _summarise
    show("loaded", imported.loaded)
    show("key encoder copied from the query", imported.copied)
    show("new", imported.new)
    show("left over", imported.left_over)
    added = f", {len(weights.added)} counters of batches set to 0" if weights.added else ""
    print(
        f"in all {len(imported.loaded)} loaded, {len(imported.copied)} copied, {len(imported.new)} new, "
        f"{len(imported.left_over)} left over, momentum of {imported.momentum} parameters{added}"
    )


def _summarise(title: str, names: Sequence[str]) -> None:
    """How many, and the parts that they belong to, in at most four lines."""
    print(f"{title}: {len(names) or 'none'}")
    parts: dict[str, list[str]] = {}
    for name in names:
        parts.setdefault(".".join(name.split(".")[:2]), []).append(name)
    shown = sorted(parts.items(), key=lambda item: -len(item[1]))[: 4 if len(parts) == 4 else 3]
    for part, members in shown:
        print(f"  {members[0]}" if len(members) == 1 else f"  {part}.* ({len(members)})")
    if len(shown) < len(parts):
        print(f"  ... and {sum(map(len, parts.values())) - sum(len(m) for _, m in shown)} more (--verbose lists all)")


def _list(title: str, names: Sequence[str]) -> None:
    """Every name; those that differ only in their last part on one line: `bn1.{weight,bias}`."""
    print(f"{title}: {len(names) or 'none'}")
    grouped: dict[str, list[str]] = {}
    for name in names:
        stem, _, leaf = name.rpartition(".")
        grouped.setdefault(stem, []).append(leaf)
    for stem, leaves in grouped.items():
        joined = leaves[0] if len(leaves) == 1 else f"{{{','.join(leaves)}}}"
        print(f"  {stem}.{joined}" if stem else "\n".join(f"  {leaf}" for leaf in leaves))
