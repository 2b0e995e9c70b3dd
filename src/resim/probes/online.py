"""Probes while a model is pre-trained: numbers of the query encoder every few epochs, and a word when it collapses.

They look and touch nothing: no weight, buffer or random number of the training is changed by them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch

from resim.errors import UserError
from resim.model.encoder import Encoder
from resim.model.resim import ReSim
from resim.probes.config import LEAST_SIZE, NEIGHBOURS, TEMPERATURE, DenseConfig
from resim.probes.features import GLOBAL, Network, pooled_features
from resim.probes.health import Health, collapse, measure_health, queue_age
from resim.probes.label_maps import LabelMaps, load_label_maps
from resim.probes.labels import ProbeImages, read_sets
from resim.probes.segmentation_labels import holds_labels, read_labelled_sets
from resim.probes.segmentation_suite import measure_dense
from resim.probes.suite import Path, Score, knn_probe
from resim.probes.unlabelled import correspondence_probe, health_probe
from resim.runs.config import Recipe, RunConfig
from resim.runs.log import Reading

_QUEUE_ROWS = 4096
_PAIRS = 128  # images for correspondence and health
_LABELLED = 256  # training images for linear segmentation, and as many test images at most
_CELLS, _STRENGTHS = 8192, (0.1, 1e-2, 1e-3)  # cells of a fit, and strengths to choose from: seconds a reading
_EARLY = 0.1  # share of the run in which vectors that lie together may still spread


class OnlineProbe:
    """What `pretrain` calls before the first step and after every epoch; to be given to it as `probe=OnlineProbe`.

    Every `probe_every` epochs, before the first and after the last: kNN on all levels where `probe_data` has classes,
    linear segmentation where it has label maps, region correspondence under changes of scale and colour, health.
    Without `probe_data` views of the training images are compared. After every epoch, whatever `probe_every` says: the
    health of the queue, which costs nothing.

    It runs on the first process alone, while the others wait for it in their next step.

    Raises:
        UserError: `probe_data` that cannot be read, or views too small for the windows of the correspondence.
    """

    def __init__(
        self, recipe: Recipe, run: RunConfig, precision: Literal["float32", "bf16"], images: Sequence[str], steps: int
    ) -> None:
        self.recipe, self.run, self.steps = recipe, run, steps
        self.precision: Literal["float32", "bf16"] = precision
        self._queue_before: Health | None = None
        self._levels_before: dict[str, Health] = {}
        if not run.probe_every:
            return
        if recipe.views.image_size < LEAST_SIZE:
            raise UserError(
                f"--probe-every: probes need views of at least {LEAST_SIZE} px, --image-size is "
                f"{recipe.views.image_size}"
            )
        self.labelled: tuple[LabelMaps, LabelMaps] | None = None
        if run.probe_labels is not None and run.probe_data is None:
            raise UserError(f"--probe-labels {run.probe_labels}: name its images with --probe-data")
        if run.probe_data is not None and (run.probe_labels is not None or holds_labels(run.probe_data)):
            most, seed = min(run.probe_images or _LABELLED, _LABELLED), recipe.optim.seed
            train, test = read_labelled_sets(run.probe_data, labels=run.probe_labels, seed=seed)
            maps = load_label_maps(train.sample(most, seed), test.sample(most, seed), recipe.views.image_size)
            self.labelled = maps
            sets = maps[0].images, maps[1].images
        elif run.probe_data is None:
            own = ProbeImages(source="the training images", kind="unlabelled", refs=images, labels=None, classes=())
            sets = own, own
        else:
            sets = read_sets(run.probe_data)
        self.train, self.test = (images.draw(run.probe_images, recipe.optim.seed) for images in sets)
        self.pairs = self.test.draw(_PAIRS, recipe.optim.seed)

    def __call__(self, model: ReSim, step: int) -> Reading:
        """Measure `model` after `step` steps, if something is due; it comes back as it was."""
        epochs, last = step // self.steps, step >= self.steps * self.recipe.optim.epochs
        values, lines = self._queue(model, step)
        if self.run.probe_every and (epochs % self.run.probe_every == 0 or last):
            try:
                with _frozen(model.query) as encoder:
                    more, told = self._measure(encoder, step)
            except UserError as error:  # images that went away do not stop a training of days
                more, told = {}, [f"probes after step {step}: {error}"]
            values, lines = values | more, lines + told
        return Reading(values=values, lines=tuple(lines))

    def _queue(self, model: ReSim, step: int) -> tuple[dict[str, float], list[str]]:
        """Health of the newest keys in the queue, and the age of its oldest."""
        age, filled = queue_age(step, self.recipe.optim.batch_size, len(model.queue))
        if filled < 2:
            return {}, []
        newest = (int(model.queue_position) - 1 - torch.arange(min(filled, _QUEUE_ROWS))) % len(model.queue)
        health = measure_health(model.queue[newest.to(model.queue.device)].float())
        wrong = collapse(health, what="the last keys", before=self._queue_before)
        self._queue_before = _best(self._queue_before, health)
        values = {"queue/age": float(age), "queue/rank": health.rank, "queue/spread": health.spread}
        # at the start of every run the vectors lie close together: that is told if it stays so
        early = step <= _EARLY * self.steps * self.recipe.optim.epochs
        return values, [wrong] if wrong and (_is_a_fall(wrong) or not early) else []

    def _measure(self, encoder: Encoder, step: int) -> tuple[dict[str, float], list[str]]:
        network = Network(name="query encoder", encoder=encoder, precision=self.precision)
        size, seed = self.recipe.views.image_size, self.recipe.optim.seed
        values, told, warned = {}, [], []
        if self.train.labels is not None and self.test.labels is not None:
            bank, asked = (pooled_features(network, images, size=size) for images in (self.train, self.test))
            scores: dict[Path, Score] = knn_probe(
                bank, asked, self.train, self.test, k=NEIGHBOURS, temperature=TEMPERATURE
            )
            values |= {f"knn/{level}": score.to_json()["top1"] for (_, level), score in scores.items()}
            values["knn_chance/C5"] = scores["knn", "C5"].to_json()["chance"]  # the same on every level
            best = max(scores.values(), key=lambda score: score.to_json()["top1"]).to_json()
            told.append(f"kNN C5 {values['knn/C5']:.1%} of {best['n']} images (chance {best['chance']:.1%})")
        if self.labelled is not None:
            more, line = self._segment(network)
            values |= more
            told.append(line)
        found = correspondence_probe(network, self.pairs, size=size, seed=seed, changes=("both",))["both"]
        values |= {f"correspondence/{level}": score.accuracy for level, score in found.items()}
        values |= {f"correspondence_chance/{level}": score.chance for level, score in found.items()}
        values |= {f"median_error_px/{level}": score.median_error for level, score in found.items()}
        shown = [level.name if level.from_fpn else f"{level.name}+conv" for level in self.recipe.model.levels] or ["C4"]
        told += [
            f"{level} finds {found[level].accuracy:.1%} of {int(found[level].windows.sum())} regions "
            f"(chance {found[level].chance:.1%})"
            for level in shown
        ]
        health = health_probe(network, self.pairs, size=size, seed=seed)
        for level, value in health.items():
            values |= {
                f"rank/{level}": value.rank,
                f"spread/{level}": value.spread,
                f"uniformity/{level}": value.uniformity,
                f"alignment/{level}": value.alignment if value.alignment is not None else math.nan,
            }
            what = "the global vectors" if level == GLOBAL else f"the {level} vectors"
            wrong = collapse(value, what=what, before=self._levels_before.get(level))
            # running statistics lag behind early weights, so that here only a fall tells of a collapse
            if _is_a_fall(wrong):
                warned.append(wrong)
            self._levels_before[level] = _best(self._levels_before.get(level), value)
        told.append(f"rank {health[GLOBAL].rank:.0f} of {health[GLOBAL].directions}")
        when = f"after epoch {step // self.steps}" if step else "before the first step"
        return values, [f"probes {when}: {', '.join(told)}", *warned]

    def _segment(self, network: Network) -> tuple[dict[str, float], str]:
        """Linear segmentation on every level alone, on a bounded number of images and cells."""
        assert self.labelled is not None
        config = DenseConfig(dense_cells=_CELLS)
        measured = measure_dense(
            network, *self.labelled, ["segmentation"], config, seed=self.recipe.optim.seed, with_all=False,
            strengths=_STRENGTHS,
        )  # fmt: skip
        values: dict[str, float] = {}
        for (_, level), (score, _) in measured.items():
            values[f"segmentation/{level}"] = score.value()
            if score.background is not None:
                values[f"foreground_iou/{level}"] = score.value("foreground_iou")
        some = next(iter(measured.values()))[0]
        values[f"segmentation_constant/{next(iter(measured))[1]}"] = some.constant
        shown = [level.name for level in self.recipe.model.levels if level.from_fpn] or ["C4"]
        mious = ", ".join(f"{level} {values[f'segmentation/{level}']:.1%}" for level in shown)
        return values, f"mIoU {mious} of {len(some.confusion)} images (constant answer {some.constant:.1%})"


def _is_a_fall(wrong: str) -> bool:
    """Whether `collapse` tells of something that was better before."""
    return wrong.startswith(("collapse", "partial"))


@contextmanager
def _frozen(encoder: Encoder) -> Iterator[Encoder]:
    """The encoder in evaluation mode; each part goes back to the mode in which it was."""
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        yield encoder
    finally:
        for module, training in modes:
            module.training = training


def _best(before: Health | None, now: Health) -> Health:
    """Of two readings the one with the greater spread: what a collapse is measured against."""
    return now if before is None or now.spread >= before.spread else before
