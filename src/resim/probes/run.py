"""Measure networks on images: read both, probe one network after the other, print tables, write probe.json."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from resim.errors import UserError
from resim.exchange.encoders import LoadedEncoder, load_encoders
from resim.exchange.sources import TORCHVISION
from resim.probes.config import LEAST_SIZE, LabelOptions, ProbeConfig
from resim.probes.features import Network
from resim.probes.inputs import ProbeData, find_sources
from resim.probes.progress import ProbeBars
from resim.probes.segmentation_picture import write_sheet
from resim.probes.suite import check_level, probe_network
from resim.probes.tables import Results, record, tables, warnings
from resim.runs.checkpoints import write_atomically
from resim.views.config import ViewsConfig

Precision = Literal["float32", "bf16"]


def probe(
    networks: Sequence[str],
    data: str | Path,
    test: str | Path | None = None,
    *,
    config: ProbeConfig | None = None,
    label_maps: LabelOptions | None = None,
    unlabelled: bool = False,
    out: Path | None = None,
    device: torch.device | str = "cpu",
    precision: Precision = "float32",
    show: bool = True,
) -> dict[str, Any]:
    """Measure networks on images, and write what was measured.

    Args:
        networks: each a run's folder, a file of weights of any program that `read_weights` reads, `torchvision:NAME`,
            `random` (the untrained network of the first other one's recipe) or `random:RECIPE`.
        data: images: a folder (class folders give the classes), a CSV file of path,label, tar shards, or a text file of
            paths; for segmentation and retrieval a COCO file, a VOC folder, or a folder with label maps.
        test: images to test on; None: val or test next to train in `data`, else a fifth of each class.
        config: what is measured; its image size is in px, 0 is that of the first recipe's views. None: the defaults.
        label_maps: where the label maps are, and which of their values count. None: the defaults.
        unlabelled: use no classes: correspondence and health alone.
        out: JSON file to write; None: probe.json in the first checkpoint's run folder, or next to it.
        device: where to compute.
        precision: of convolutions; features are compared in float32.
        show: print the tables and the progress.

    Returns:
        The content of the file: scores from 0 to 1 by network and probe, intervals, settings, and a verdict in lines.

    Raises:
        UserError: networks or images that cannot be read, a level that a network does not have, or an output that
            cannot be written.
    """
    config, label_maps = config or ProbeConfig(), label_maps or LabelOptions()
    if out is not None and out.suffix != ".json":
        raise UserError(f"--out {out}: must end in .json")
    if out is not None and out.is_dir():
        raise UserError(f"--out {out}: is a folder, a .json file is needed")
    sources = find_sources(str(data), None if test is None else str(test), label_maps, config, unlabelled=unlabelled)
    loaded = load_encoders(networks, seed=config.seed)
    config = dataclasses.replace(config, image_size=_image_size(config, loaded))
    for item in loaded:  # all of them now, not the last one after the others were measured
        check_level(_network(item, precision), config, has_classes=sources.has_classes)
    out = out or _default_out(loaded)
    _check_writable(out)

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 180, quiet=not show)
    inputs = sources.load(label_maps, config)
    _print_lines(console, inputs.lines(config))
    results: dict[str, Any] = {}
    with ProbeBars(console) as bars:
        for item in loaded:
            item.encoder.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            results[item.name] = probe_network(
                _network(item, precision), inputs.train, inputs.test, config, labels=inputs.labels,
                progress=bars.of(item.name),
            )  # fmt: skip
            item.encoder.cpu()
    untrained = next((item.name for item in loaded if item.path is None), None)
    settings = _settings(config, label_maps, inputs, precision)
    about = {item.name: item.about() for item in loaded}
    content = record(results, about, inputs.train, inputs.test, settings, labels=inputs.labels, reference=untrained)
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(out, lambda file: file.write(text.encode()))
    _print_tables(console, results, untrained)
    _print_lines(console, [f"wrote {out}"])
    if inputs.labels is not None:
        sheet = out.with_name(f"{out.stem}_segmentation.png")
        if write_sheet(sheet, results, inputs.labels[1], untrained or loaded[0].name) is not None:
            _print_lines(console, [f"wrote {sheet}"])
    _print_lines(console, content["verdict"])
    return content


def choose_device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device to compute on; `auto`: a GPU if there is one.

    Raises:
        UserError: `cuda` where there is no GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no GPU is available: use --device cpu, or check the output of nvidia-smi")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _network(item: LoadedEncoder, precision: Precision) -> Network:
    return Network(name=item.name, encoder=item.encoder, has_head=item.has_head, precision=precision)


def _image_size(config: ProbeConfig, loaded: Sequence[LoadedEncoder]) -> int:
    if config.image_size:
        return config.image_size
    views = next((item.recipe.views for item in loaded if item.recipe is not None), ViewsConfig())
    if views.image_size < LEAST_SIZE:
        raise UserError(f"the recipe's views have {views.image_size} px: set --image-size to {LEAST_SIZE} or more")
    return views.image_size


def _default_out(loaded: Sequence[LoadedEncoder]) -> Path:
    # nothing is written into torchvision's cache
    paths = (item.path for item in loaded if not item.name.startswith(f"{TORCHVISION}:"))
    path = next((path for path in paths if path is not None), None)
    if path is None:
        return Path("probe.json")
    return (path.parent.parent if path.parent.name == "checkpoints" else path.parent) / "probe.json"


def _check_writable(out: Path) -> None:
    """Raise now, not after minutes of work."""
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"--out {out}: {above} cannot be written to")


def _settings(config: ProbeConfig, options: LabelOptions, inputs: ProbeData, precision: Precision) -> dict[str, Any]:
    settings = dataclasses.asdict(config) | {"precision": precision}
    if inputs.labels is not None:  # without the paths of the label maps, which a model card would make public
        settings["label_maps"] = {"split": options.split, "void": options.void, "background": options.background}
    return settings


def _print_tables(console: Console, results: Results, reference: str | None) -> None:
    for table in tables(results, reference):
        console.print()
        console.print(table)
    console.print()
    _print_lines(console, warnings(results))


def _print_lines(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
