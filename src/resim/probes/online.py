"""Probes during pre-training: readings of the query encoder every few epochs, and warnings of collapse.

Weights, buffers and random states of the training are not changed.
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
from resim.probes.config import LEAST_SIZE, NEIGHBOURS, TEMPERATURE, DenseConfig, ScorePath
from resim.probes.features import GLOBAL, Network, pooled_features
from resim.probes.health import Health, collapse_warning, measure_health, queue_age
from resim.probes.label_maps import LabelMaps, load_label_maps
from resim.probes.labels import ProbeImages, read_sets
from resim.probes.segmentation_labels import has_label_maps, read_labelled_sets
from resim.probes.segmentation_suite import measure_dense
from resim.probes.suite import Score, knn_probe
from resim.probes.unlabelled import correspondence_probe, health_probe
from resim.runs.config import Recipe, RunConfig
from resim.runs.log import Reading

_QUEUE_ROWS = 4096
_PAIRS = 128  # images for correspondence and health
_LABELLED = 256  # maximum number of training images, and of test images, for linear segmentation
_CELLS, _STRENGTHS = 8192, (0.1, 1e-2, 1e-3)  # of linear segmentation: a reading takes seconds
_EARLY = 0.1  # fraction of the run after which a low spread is a warning


class OnlineProbe:
    """The probes of a pre-training, passed as `pretrain(..., probe=OnlineProbe)`.

    `pretrain` calls them before the first step and after every epoch. Every `probe_every` epochs, before the first and
    after the last, they measure kNN on all levels if `probe_data` has classes, linear segmentation if it has label
    maps, region correspondence under changes of scale and colour, and health. Without `probe_data`, views of the
    training images are compared. The health of the queue is measured after every epoch.

    They run on the first process only; the others wait for it in their next step.

    Raises:
        UserError: `probe_data` cannot be read, or views are too small for the windows of the correspondence.
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
        if run.probe_data is not None and (run.probe_labels is not None or has_label_maps(run.probe_data)):
            most, seed = min(run.probe_images or _LABELLED, _LABELLED), recipe.optim.seed
            train, test = read_labelled_sets(run.probe_data, labels=run.probe_labels, seed=seed)
            maps = load_label_maps(train.sample(most, seed), test.sample(most, seed), recipe.views.image_size)
            self.labelled = maps
            sets = maps[0].images, maps[1].images
        elif run.probe_data is None:
            views = ProbeImages(source="the training images", kind="unlabelled", refs=images, labels=None, classes=())
            sets = views, views
        else:
            sets = read_sets(run.probe_data)
        self.train, self.test = (images.sample(run.probe_images, recipe.optim.seed) for images in sets)
        self.pairs = self.test.sample(_PAIRS, recipe.optim.seed)

    def __call__(self, model: ReSim, step: int) -> Reading:
        """Measure `model` after `step` steps, if a reading is due; the model is not changed."""
        num_epochs, is_last = step // self.steps, step >= self.steps * self.recipe.optim.epochs
        values, lines = self._measure_queue(model, step)
        if self.run.probe_every and (num_epochs % self.run.probe_every == 0 or is_last):
            try:
                with _frozen(model.query) as encoder:
                    probe_values, probe_lines = self._measure(encoder, step)
            except UserError as error:  # missing images must not stop a training of days
                probe_values, probe_lines = {}, [f"probes after step {step}: {error}"]
            values, lines = values | probe_values, lines + probe_lines
        return Reading(values=values, lines=tuple(lines))

    def _measure_queue(self, model: ReSim, step: int) -> tuple[dict[str, float], list[str]]:
        """Health of the newest keys in the queue, and the age of its oldest key."""
        age, filled = queue_age(step, self.recipe.optim.batch_size, len(model.queue))
        if filled < 2:
            return {}, []
        newest = (int(model.queue_position) - 1 - torch.arange(min(filled, _QUEUE_ROWS))) % len(model.queue)
        health = measure_health(model.queue[newest.to(model.queue.device)].float())
        warning = collapse_warning(health, what="the last keys", before=self._queue_before)
        self._queue_before = _most_spread(self._queue_before, health)
        values = {"queue/age": float(age), "queue/rank": health.rank, "queue/spread": health.spread}
        # the initial vectors of every run are similar: a warning is due only if they do not spread
        is_early = step <= _EARLY * self.steps * self.recipe.optim.epochs
        return values, [warning] if warning and (_is_change(warning) or not is_early) else []

    def _measure(self, encoder: Encoder, step: int) -> tuple[dict[str, float], list[str]]:
        """All readings, and a line that summarises them with a line for each warning."""
        network = Network(name="query encoder", encoder=encoder, precision=self.precision)
        results = [
            *([self._measure_knn(network)] if self.train.labels is not None and self.test.labels is not None else []),
            *([self._measure_segmentation(network)] if self.labelled is not None else []),
            self._measure_correspondence(network),
        ]
        health_values, rank, warnings = self._measure_health(network)
        values: dict[str, float] = {}
        for result in results:
            values |= result[0]
        when = f"after epoch {step // self.steps}" if step else "before the first step"
        summary = ", ".join([*(result[1] for result in results), rank])
        return values | health_values, [f"probes {when}: {summary}", *warnings]

    def _measure_knn(self, network: Network) -> tuple[dict[str, float], str]:
        """kNN on every level."""
        size = self.recipe.views.image_size
        bank, queries = (pooled_features(network, images, size=size) for images in (self.train, self.test))
        scores: dict[ScorePath, Score] = knn_probe(
            bank, queries, self.train, self.test, k=NEIGHBOURS, temperature=TEMPERATURE
        )
        values = {f"knn/{level}": score.to_json()["top1"] for (_, level), score in scores.items()}
        c5 = scores["knn", "C5"].to_json()
        values["knn_chance/C5"] = c5["chance"]  # the same on every level
        return values, f"kNN C5 {c5['top1']:.1%} of {c5['n']} images (chance {c5['chance']:.1%})"

    def _measure_correspondence(self, network: Network) -> tuple[dict[str, float], str]:
        """Region correspondence of every level under changes of scale and colour."""
        size, seed = self.recipe.views.image_size, self.recipe.optim.seed
        levels = correspondence_probe(network, self.pairs, size=size, seed=seed, changes=("both",))["both"]
        values = {f"correspondence/{level}": score.accuracy for level, score in levels.items()}
        values |= {f"correspondence_chance/{level}": score.chance for level, score in levels.items()}
        values |= {f"median_error_px/{level}": score.median_error for level, score in levels.items()}
        shown = [level.name if level.from_fpn else f"{level.name}+conv" for level in self.recipe.model.levels] or ["C4"]
        return values, ", ".join(
            f"correspondence {level} {levels[level].accuracy:.1%} of {int(levels[level].windows.sum())} windows "
            f"(chance {levels[level].chance:.1%})"
            for level in shown
        )

    def _measure_health(self, network: Network) -> tuple[dict[str, float], str, list[str]]:
        """Health of every level, and warnings of levels that have collapsed since an earlier reading."""
        values: dict[str, float] = {}
        warnings: list[str] = []
        health = health_probe(network, self.pairs, size=self.recipe.views.image_size, seed=self.recipe.optim.seed)
        for level, value in health.items():
            values |= {
                f"rank/{level}": value.rank,
                f"spread/{level}": value.spread,
                f"uniformity/{level}": value.uniformity,
                f"alignment/{level}": value.alignment if value.alignment is not None else math.nan,
            }
            what = "the global vectors" if level == GLOBAL else f"the {level} vectors"
            warning = collapse_warning(value, what=what, before=self._levels_before.get(level))
            # early running statistics lag behind the weights, so only a decrease indicates a collapse
            if _is_change(warning):
                warnings.append(warning)
            self._levels_before[level] = _most_spread(self._levels_before.get(level), value)
        return values, f"rank {health[GLOBAL].rank:.0f} of {health[GLOBAL].directions}", warnings

    def _measure_segmentation(self, network: Network) -> tuple[dict[str, float], str]:
        """Linear segmentation on every single level, on a limited number of images and cells."""
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
        first = next(iter(measured.values()))[0]
        values[f"segmentation_constant/{next(iter(measured))[1]}"] = first.constant
        shown = [level.name for level in self.recipe.model.levels if level.from_fpn] or ["C4"]
        mious = ", ".join(f"{level} {values[f'segmentation/{level}']:.1%}" for level in shown)
        num_images = len(first.confusion)
        return values, f"mIoU {mious} of {num_images} images (constant prediction {first.constant:.1%})"


def _is_change(warning: str) -> bool:
    """Whether a warning compares with an earlier, better reading."""
    return warning.startswith(("collapse", "partial"))


@contextmanager
def _frozen(encoder: Encoder) -> Iterator[Encoder]:
    """The encoder in evaluation mode; the mode of each module is restored on exit."""
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        yield encoder
    finally:
        for module, training in modes:
            module.training = training


def _most_spread(before: Health | None, now: Health) -> Health:
    """The reading with the greater spread, with which later readings are compared."""
    return now if before is None or now.spread >= before.spread else before
