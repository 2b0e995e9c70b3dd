"""The plan of the demo: the time of pre-training, probes and detectors, by the speeds of this machine.

Nothing here reads a clock, so that the same speeds give the same plan. Pre-training gets about half of the time, probes
what their images need, detectors the rest. If time is short, the detectors are left out first; then pre-training and
probes shrink to the smallest useful size. If there is plenty, every part ends at a size beyond which it shows little
more, and the demo ends early.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from resim.counts import counted

NETWORKS = 3  # untrained, ReSim, MoCo v2
EVALUATIONS = 2  # of a detector: at half of its steps, and at the end
_SCORING = 1.5  # seconds of an evaluation with its scores, intervals and pictures, over those of detection alone
DRAW, MEASURE, RESIM, MOCO = "draw the scenes", "measure this machine", "pre-train ReSim", "pre-train MoCo v2"
PROBE, DETECT, REPORT = "probe", "train detectors", "write the report"
_DRAWING = 0.08  # maximum share of the minutes
_PRETRAINING, _PROBES = 0.5, 0.2  # maximum shares of the time left, where there are detectors
_RESERVE = 0.15  # share of the detectors' time that is left free: their speed, measured on a few steps, varies as much
_MOST_OVER = 0.1  # share of the minutes by which planned detectors may overrun them


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """Seconds of each unit of the demo's work."""

    start: float
    """From the start of a training to its first step."""
    resim_pair: float
    """A view pair of ReSim's pre-training."""
    moco_pair: float
    """A view pair of MoCo v2's pre-training."""
    probe_image: float
    """All probes of one network, for each held-out image."""
    detector_step: float = 0.0
    """A training step of a detector."""
    detected_image: float = 0.0
    """Detection in one image."""
    report: float
    """The report."""

    def scaled(self, factor: float) -> Speeds:
        """The speeds if everything takes `factor` times as long."""
        return Speeds(**{name: value * factor for name, value in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The smallest and the largest useful size of each part."""

    pairs: tuple[int, int] = (1024, 40_960)
    """View pairs that each model is pre-trained on."""
    probe_images: tuple[int, int] = (64, 256)
    """Held-out images of the probes."""
    steps: tuple[int, int] = (60, 300)
    """Steps of a detector, even numbers."""
    good_steps: int = 120
    """Number of steps from which on time is spent on another seed rather than on more steps."""
    seeds: int = 3
    """Maximum number of seeds of the detectors."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The sizes of all parts, and their expected times."""

    minutes: float
    """Minutes for the whole demo."""
    used: float
    """Seconds that had passed when the plan was made."""
    epochs: int
    """Epochs of each pre-training."""
    pairs: int
    """View pairs of each pre-training."""
    probe_images: int
    """Held-out images of the probes."""
    steps: int
    """Steps of a detector; 0: there are no detectors."""
    seeds: int
    """Seeds of the detectors."""
    seconds: Mapping[str, float]
    """Expected seconds of each remaining stage, in their order."""
    began_with_detectors: bool = False
    """Whether the first plan had detectors: a later one may add them again, and overrun a little for them."""
    notes: tuple[str, ...] = ()
    """Lines to print: that the machine is slow, what is left out and why."""

    @property
    def total(self) -> float:
        """Seconds from the start of the demo to its end."""
        return self.used + sum(self.seconds.values())


def scenes_that_fit(
    minutes: float, seconds: float, most: tuple[int, int], least: tuple[int, int] = (128, 64)
) -> tuple[int, int]:
    """Numbers of training scenes (a multiple of 32) and of held-out scenes that fit, in the proportion of `most`.

    Args:
        minutes: for the whole demo.
        seconds: time of one scene.
        most: maximum number of either kind.
        least: minimum number of either kind, unless `most` is smaller.
    """
    share = _DRAWING * 60 * minutes / (seconds * sum(most))
    if share >= 1:
        return most
    train, held_out = math.floor(share * most[0] / 32) * 32, math.floor(share * most[1])
    return min(most[0], max(least[0], train)), min(most[1], max(least[1], held_out))


def make_plan(
    minutes: float,
    speeds: Speeds,
    *,
    epoch_pairs: int,
    used: float = 0.0,
    pairs: int | None = None,
    labels: int = 0,
    bounds: Bounds | None = None,
) -> Plan:
    """Plan the rest of the minutes.

    Args:
        minutes: for the whole demo.
        speeds: speeds of this machine.
        epoch_pairs: view pairs of one epoch; pre-training takes whole epochs.
        used: seconds that have passed.
        pairs: view pairs of each pre-training; None: as many as fit.
        labels: images on which a detector is evaluated; 0: there are no labels, and no detectors.
        bounds: minimum and maximum of each part; None: the demo's.
    """
    bounds = bounds or Bounds()
    left = 60 * minutes - used
    epoch = epoch_pairs * (speeds.resim_pair + speeds.moco_pair)
    fixed = speeds.report + 2 * speeds.start
    least, most = (max(1, round(bound / epoch_pairs)) for bound in bounds.pairs)
    if pairs is not None:
        least = most = max(1, round(pairs / epoch_pairs))
    least_probes = _probes(bounds.probe_images[0], speeds)
    least_detectors = _detectors(bounds.steps[0], 1, speeds, labels)
    needed = fixed + least * epoch + least_probes
    with_detectors = labels > 0 and needed + least_detectors <= left
    kept = least_detectors if with_detectors else 0.0

    share = _PROBES * left if labels else left
    room = min(share, left - fixed - least * epoch - kept)
    probe_images = _within(room / _probes(1, speeds), bounds.probe_images)
    room = left - fixed - _probes(probe_images, speeds) - kept
    if with_detectors:
        room = min(room, max(_PRETRAINING * left, least * epoch))
    epochs = _within(room / epoch, (least, most))

    seconds = {
        RESIM: speeds.start + epochs * epoch_pairs * speeds.resim_pair,
        MOCO: speeds.start + epochs * epoch_pairs * speeds.moco_pair,
        PROBE: _probes(probe_images, speeds),
    }
    steps, seeds = 0, 0
    if with_detectors:
        steps, seeds = _steps_and_seeds(left - speeds.report - sum(seconds.values()), speeds, labels, bounds)
        seconds[DETECT] = _detectors(steps, seeds, speeds, labels)
    seconds[REPORT] = speeds.report
    plan = Plan(
        minutes=minutes, used=used, epochs=epochs, pairs=epochs * epoch_pairs, probe_images=probe_images, steps=steps,
        seeds=seeds, seconds=seconds, began_with_detectors=with_detectors,
    )  # fmt: skip
    notes = []
    if plan.total > 60 * minutes and pairs is not None:
        notes.append(f"--pairs {pairs} on this machine takes about {_minutes(plan.total)}, not {minutes:g}")
    elif plan.total > 60 * minutes:
        notes.append(f"this machine is slow: the least that shows anything takes about {_minutes(plan.total)}")
    if labels and not with_detectors:
        minutes_needed = _minutes(used + needed + least_detectors)
        notes.append(f"no time for detectors: a demo with them takes about {minutes_needed} here")
    at_most = (most, bounds.probe_images[1], *((bounds.steps[1], bounds.seeds) if labels else (0, 0)))
    if pairs is None and (epochs, probe_images, steps, seeds) == at_most and plan.total < 60 * minutes:
        notes.append(f"this machine is fast: more than {_minutes(plan.total)} would show little more")
    return replace(plan, notes=tuple(notes))


def plan_rest(
    plan: Plan, speeds: Speeds, *, used: float, probed: bool, labels: int = 0, bounds: Bounds | None = None
) -> Plan:
    """Plan what remains after pre-training, or after the probes: detectors fill the time that is left.

    Args:
        plan: the current plan.
        speeds: speeds of this machine.
        used: seconds that have passed.
        probed: whether the probes are done.
        labels: as in `make_plan`.
        bounds: as in `make_plan`.
    """
    bounds = bounds or Bounds()
    left = 60 * plan.minutes - used
    probe_images, seconds, notes = plan.probe_images, dict[str, float](), list[str]()
    kept = _detectors(bounds.steps[0], 1, speeds, labels) if plan.steps else 0.0
    if not probed:
        room = left - speeds.report - kept
        if labels:
            room = min(room, _PROBES * 60 * plan.minutes)
        probe_images = _within(room / _probes(1, speeds), bounds.probe_images)
        seconds[PROBE] = _probes(probe_images, speeds)
    room = left - speeds.report - sum(seconds.values())
    over = _MOST_OVER * 60 * plan.minutes if plan.began_with_detectors else 0.0
    steps, seeds = 0, 0
    if labels and _detectors(bounds.steps[0], 1, speeds, labels) <= room + over:
        steps, seeds = _steps_and_seeds(room, speeds, labels, bounds)
        seconds[DETECT] = _detectors(steps, seeds, speeds, labels)
    elif plan.steps:
        notes.append("the detectors are left out: the stages before them took longer than planned")
    seconds[REPORT] = speeds.report
    return replace(
        plan, used=used, probe_images=probe_images, steps=steps, seeds=seeds, seconds=seconds, notes=tuple(notes)
    )


def seeds_that_fit(plan: Plan, run_seconds: float, left: float, bounds: Bounds | None = None) -> int:
    """The number of seeds of the detectors (at least one), given the duration of the first run.

    Args:
        plan: the current plan.
        run_seconds: seconds of the first run.
        left: seconds left after that run.
        bounds: as in `make_plan`.
    """
    runs = 1 + math.floor((left - plan.seconds[REPORT]) / run_seconds)
    return max(1, min((bounds or Bounds()).seeds, runs // NETWORKS))


def _probes(images: int, speeds: Speeds) -> float:
    return NETWORKS * images * speeds.probe_image


def _detectors(steps: int, seeds: int, speeds: Speeds, images: int) -> float:
    """Seconds of one detector for each network and seed."""
    evaluations = _SCORING * EVALUATIONS * images * speeds.detected_image
    return NETWORKS * seeds * (speeds.start + steps * speeds.detector_step + evaluations)


def _steps_and_seeds(left: float, speeds: Speeds, images: int, bounds: Bounds) -> tuple[int, int]:
    """As many seeds as fit with `good_steps` each, then as many steps as fit, with a reserve."""
    steps, left = 0, (1 - _RESERVE) * left
    for seeds in range(bounds.seeds, 0, -1):
        room = left / (NETWORKS * seeds) - _detectors(0, 1, speeds, images) / NETWORKS
        steps = _within(room / speeds.detector_step, bounds.steps) // EVALUATIONS * EVALUATIONS  # none is left over
        if seeds == 1 or (steps >= bounds.good_steps and _detectors(steps, seeds, speeds, images) <= left):
            return steps, seeds
    return steps, 1


def _within(value: float, bounds: tuple[int, int]) -> int:
    return max(bounds[0], min(bounds[1], math.floor(value)))


def _minutes(seconds: float) -> str:
    return counted(math.ceil(seconds / 60), "minute")
