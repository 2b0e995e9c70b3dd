"""`resim probe`: its options, and what it prints and writes."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from resim.errors import UserError
from resim.probes.config import DENSE, LEAST_SIZE, LabelOptions, ProbeConfig
from resim.views.config import ViewsConfig

if TYPE_CHECKING:
    import torch

    from resim.exchange.encoders import LoadedEncoder
    from resim.model.encoder import Encoder
    from resim.probes.label_maps import LabelMaps
    from resim.probes.labelled_images import LabelledImages
    from resim.probes.labels import ProbeImages
    from resim.probes.tables import Results
    from resim.probes.unlabelled import ProbeProgress


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """Options of `resim probe`."""

    words: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="NETWORK [NETWORK ...] DATA", name="words")
    ]
    """Networks, then the images. A network is random, a run's folder, a file of weights of any program that resim
    import reads, or torchvision:NAME such as torchvision:resnet50 (ImageNet's weights, downloaded once); random is the
    untrained network of the first one's recipe, random:RECIPE that of another. Images are a folder (class folders give
    the classes), a CSV file of path,label, a tar, a folder or a quoted pattern of tars, or a .txt file of paths; for
    segmentation and retrieval a COCO file, a VOC folder, or a folder with label maps."""
    test: str | None = None
    """Images to test on; default: val or test beside train in DATA, else a fifth of each class drawn at random."""
    unlabelled: bool = False
    """Use no classes: correspondence and health alone."""
    out: Path | None = None
    """JSON file to write; default: probe.json in the first checkpoint's run folder, or beside it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: a GPU if there is one."""
    precision: Literal["auto", "float32", "bf16"] = "float32"
    """bf16 runs convolutions in bfloat16; auto: bf16 where it is faster. Features are compared in float32."""
    label_maps: LabelOptions
    config: ProbeConfig


def run_probe(options: ProbeOptions) -> None:
    """Measure the networks, print the tables, write the file.

    Raises:
        UserError: networks or images that cannot be read, or an output that cannot be written.
    """
    if len(options.words) < 2:
        raise UserError("NETWORK and DATA are needed: resim probe CHECKPOINT DIR")
    *words, data = options.words
    out = options.out
    if out is not None and out.suffix != ".json":
        raise UserError(f"--out {out}: must end in .json")
    if out is not None and out.is_dir():
        raise UserError(f"--out {out}: is a folder, a .json file is needed")

    from resim.cli.probe_labels import check_no_labels, greeting, read_label_sets
    from resim.probes.labels import read_sets
    from resim.probes.segmentation_picture import write_sheet

    sets, labelled = None, None
    if set(DENSE) & set(options.config.probes):
        most, seed = options.config.images, options.config.seed
        labelled = read_label_sets(data, options.test, options.label_maps, most=most, seed=seed)
    else:
        check_no_labels(data, options.label_maps)
        sets = read_sets(data, options.test, labelled=not options.unlabelled, seed=options.config.seed)

    from resim.exchange.encoders import load_encoders
    from resim.probes.features import Network
    from resim.probes.suite import check_level, probe_network
    from resim.probes.tables import record
    from resim.runs.checkpoints import write_atomically
    from resim.training.precision import choose_precision

    device = _device(options.device)
    loaded = load_encoders(words, seed=options.config.seed)
    config = dataclasses.replace(options.config, image_size=_size(options.config, loaded))
    for item in loaded:  # all of them now, not the last one after the others were measured
        has_classes = sets is not None and all(part.labels is not None for part in sets)
        network = Network(name=item.name, encoder=item.encoder, has_head=item.has_head)
        check_level(network, config, has_classes=has_classes)
    out = out or _default_out(loaded)
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):  # now, not after minutes of work
        raise UserError(f"--out {out}: {above} cannot be written to")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 180)
    maps = None if labelled is None else load_maps(labelled, options.label_maps, config.image_size)
    if maps is not None:
        sets = maps[0].images, maps[1].images
    assert sets is not None
    train, test = (part.sample(config.images, config.seed) for part in sets)
    for line in [*_greeting(train, test, config), *([] if maps is None else greeting(*maps))]:
        console.print(line, markup=False, soft_wrap=True)
    precision = choose_precision(options.precision, device)
    results: dict[str, Any] = {}
    untrained = next((item.name for item in loaded if item.path is None), None)
    with _Bars(console) as bars:
        for item in loaded:
            network = Network(
                name=item.name, encoder=_at(item.encoder, device), has_head=item.has_head, precision=precision
            )
            results[item.name] = probe_network(network, train, test, config, labels=maps, progress=bars.told(item.name))
            item.encoder.cpu()
    settings = dataclasses.asdict(config) | {"precision": precision}
    if maps is not None:
        named = options.label_maps  # without its paths, which a model card would carry on
        settings["label_maps"] = {"split": named.split, "void": named.void, "background": named.background}
    about = {item.name: item.about() for item in loaded}
    content = record(results, about, train, test, settings, labels=maps, reference=untrained)
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(out, lambda file: file.write(text.encode()))
    _print(console, results, untrained)
    console.print(f"wrote {out}", markup=False, soft_wrap=True)
    if maps is not None:
        sheet = out.with_name(f"{out.stem}_segmentation.png")
        if write_sheet(sheet, results, maps[1], untrained or loaded[0].name) is not None:
            console.print(f"wrote {sheet}", markup=False, soft_wrap=True)
    for line in content["verdict"]:
        console.print(line, markup=False, soft_wrap=True)


def load_maps(
    labelled: tuple[LabelledImages, LabelledImages], options: LabelOptions, size: int
) -> tuple[LabelMaps, LabelMaps]:
    """The label maps that the options name, at `size` px."""
    from resim.probes.label_maps import load_label_maps

    background = None if options.background < 0 else options.background
    return load_label_maps(*labelled, size, void=options.void, background=background, only=options.classes)


def _device(asked: Literal["auto", "cpu", "cuda"]) -> torch.device:
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no GPU is available: use --device cpu, or check the output of nvidia-smi")
    return torch.device("cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu")


def _at(encoder: Encoder, device: torch.device) -> Encoder:
    import torch

    return encoder.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _size(config: ProbeConfig, loaded: Sequence[LoadedEncoder]) -> int:
    if config.image_size:
        return config.image_size
    views = next((item.recipe.views for item in loaded if item.recipe is not None), ViewsConfig())
    if views.image_size < LEAST_SIZE:
        raise UserError(f"the recipe's views have {views.image_size} px: set --image-size to {LEAST_SIZE} or more")
    return views.image_size


def _default_out(loaded: Sequence[LoadedEncoder]) -> Path:
    from resim.exchange.sources import TORCHVISION

    own = (item for item in loaded if not item.name.startswith(f"{TORCHVISION}:"))  # nothing goes into its cache
    path = next((item.path for item in own if item.path is not None), None)
    if path is None:
        return Path("probe.json")
    return (path.parent.parent if path.parent.name == "checkpoints" else path.parent) / "probe.json"


def _greeting(train: ProbeImages, test: ProbeImages, config: ProbeConfig) -> list[str]:
    lines = [f"views of {config.image_size} px, test: {test}"]
    notes = dict.fromkeys(f"{images.source}: {images.note}" for images in (train, test) if images.note)
    by_classes = {"knn", "linear", "linear-sgd"} & set(config.probes)
    if not by_classes:
        return [*lines, *notes]
    if train.labels is None or test.labels is None:
        return [*lines, *notes, "the images have no classes: kNN and linear probes are left out"]
    lines[0] += f"; train: {train}"
    if "knn" in by_classes and config.k > len(train):
        lines.append(f"k is {len(train)}, the number of training images, for --k {config.k}")
    return [*lines, *notes]


def _print(console: Console, results: Results, reference: str | None) -> None:
    from resim.probes.tables import tables, warnings

    for table in tables(results, reference):
        console.print()
        console.print(table)
    console.print()
    for line in warnings(results):
        console.print(line, markup=False, soft_wrap=True)


class _Bars:
    """One bar for what is being measured; nothing where the output is no terminal."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip

    def __enter__(self) -> _Bars:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def told(self, name: str) -> ProbeProgress:
        """What `probe_network` tells of its progress with the network of this name."""
        now: dict[str, Any] = {}

        def tell(what: str, done: int, of: int) -> None:
            if now.get("what") != what:
                if now:
                    self._bars.remove_task(now["task"])
                now.update(what=what, task=self._bars.add_task(f"{name}: {what}", total=of or None))
            self._bars.update(now["task"], advance=done)

        return tell
