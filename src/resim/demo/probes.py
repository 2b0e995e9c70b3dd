"""The demo's probes of the untrained network, ReSim's and MoCo v2's, on held-out images."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from resim.demo.images import DemoImages
from resim.exchange.encoders import load_encoders
from resim.probes.config import DENSE, DenseConfig, ProbeConfig, ScorePath
from resim.probes.features import Network
from resim.probes.label_maps import LabelMaps, load_label_maps
from resim.probes.labels import ProbeImages, read_images
from resim.probes.segmentation_labels import read_labelled_sets
from resim.probes.segmentation_picture import write_sheet
from resim.probes.segmentation_suite import measure_dense
from resim.probes.suite import Score
from resim.probes.tables import record
from resim.probes.unlabelled import correspondence_probe, health_probe, probe_window
from resim.runs.bars import Watch
from resim.runs.checkpoints import write_atomically

NAMES = {"random": "untrained", "resim": "ReSim", "moco-v2": "MoCo v2"}
BACKBONE, PYRAMID = "C4", "P4"
"""The maps that are compared: one of the backbone, which all three networks have, and one of ReSim's FPN."""
_HEALTH_IMAGES = 64
_STRENGTHS = (0.1, 1e-2, 1e-3)  # of linear segmentation's penalty, to choose from


@dataclass(frozen=True, kw_only=True)
class ProbeSets:
    """The images and labels of the probes."""

    held_out: ProbeImages
    labels: tuple[LabelMaps, LabelMaps] | None
    """Label maps of the training scenes that have labels, and of the held-out scenes; None: no labels."""
    size: int
    """Side of a view, px."""


def read_sets(images: DemoImages, *, size: int, most: int = 0, most_labelled: int = 0, seed: int = 0) -> ProbeSets:
    """Read at most `most` held-out images, and at most `most_labelled` labelled ones (0: all)."""
    held_out, labels = read_images(images.held_out, labelled=False), None
    if images.labelled is not None and images.val is not None:
        train, test = read_labelled_sets(str(images.labelled), str(images.val))
        labels = load_label_maps(train.sample(most_labelled, seed), test.sample(most, seed), size)
    return ProbeSets(held_out=held_out.sample(most, seed), labels=labels, size=size)


def measure_network(network: Network, sets: ProbeSets, seed: int) -> dict[ScorePath, Score]:
    """Measure region correspondence and health, and where there are labels linear segmentation and dense retrieval."""
    accuracies = correspondence_probe(network, sets.held_out, size=sets.size, seed=seed, changes=("both",))
    details = {"window_px": probe_window(sets.size)}
    scores: dict[ScorePath, Score] = {
        ("correspondence", "both", level): Score(value=value, details=details)
        for level, value in accuracies["both"].items()
    }
    if sets.labels is not None:
        levels = tuple(level for level in (BACKBONE, PYRAMID) if level in network.strides)
        config = DenseConfig(dense_levels=levels, retrieval_shares=(1.0,))
        dense = measure_dense(network, *sets.labels, DENSE, config, seed=seed, with_all=False, strengths=_STRENGTHS)
        scores |= {path: Score(value=value, details=about) for path, (value, about) in dense.items()}
    some = sets.held_out.take(range(min(_HEALTH_IMAGES, len(sets.held_out))))
    healthy = health_probe(network, some, size=sets.size, seed=seed)
    return scores | {("health", level): Score(value=value, details={}) for level, value in healthy.items()}


def probe(
    out: Path, images: DemoImages, seed: int, watch: Watch, *, most: int = 0
) -> dict[str, dict[ScorePath, Score]]:
    """Measure the untrained network, ReSim's and MoCo v2's; write probe/probe.json and a picture of label maps.

    Args:
        out: folder of the demo, with the two runs in `resim` and `moco-v2`.
        images: the demo's images.
        seed: seed of everything random.
        watch: called with the number of networks done and of all networks.
        most: maximum number of held-out images; 0: all.

    Returns:
        Scores by the networks' names: random, resim, moco-v2.
    """
    loaded = load_encoders(["random", *(str(out / name) for name in ("resim", "moco-v2"))], seed=seed)
    size = next(item.recipe.views.image_size for item in loaded if item.recipe is not None)
    sets = read_sets(images, size=size, most=most, seed=seed)
    results: dict[str, dict[ScorePath, Score]] = {}
    about = {}
    for number, (name, item) in enumerate(zip(NAMES, loaded, strict=True)):
        network = Network(name=name, encoder=item.encoder, has_head=item.has_head, precision="float32")
        results[name] = measure_network(network, sets, seed)
        about[name] = item.about()
        watch(number + 1, len(loaded))
    probes = tuple(dict.fromkeys(path[0] for path in results["random"]))
    config = dataclasses.asdict(ProbeConfig(image_size=size, seed=seed, pairs=0)) | {"probes": probes}
    _write(out / "probe", results, about, sets, config)
    return results


def _write(
    folder: Path, results: Mapping[str, Mapping[ScorePath, Score]], about: Mapping[str, dict[str, object]],
    sets: ProbeSets, config: Mapping[str, object],
) -> None:  # fmt: skip
    content = record(results, about, sets.held_out, sets.held_out, config, labels=sets.labels)
    text = json.dumps(content, indent=2)
    write_atomically(folder / "probe.json", lambda file: file.write(text.encode()))
    if sets.labels is not None:
        write_sheet(folder / "probe_segmentation.png", results, sets.labels[1], "random")
