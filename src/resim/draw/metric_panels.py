"""Which diagrams a run's metrics make, and where chance lies in them, as data: for the PNG and for the report alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resim.runs.config import Recipe

# Okabe and Ito's colour-blind-safe colours; black is for the total. Yellow is left out: too faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
TOTAL_COLOUR = "#1a1a1a"
PROBED = "correspondence"
CHANCE = f"{PROBED}_chance"


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A level that a curve is read against, drawn as a dashed line."""

    label: str
    value: float
    """In the unit of the file."""
    key: str
    """Whose colour it takes."""


@dataclass(frozen=True, kw_only=True)
class MetricPanel:
    """One diagram of a run, and the keys of its curves."""

    title: str
    unit: str  # the y axis
    keys: list[str]
    factor: float = 1.0  # from the unit of the file to that of the axis
    from_zero: bool = False
    smooth: bool = True
    large: bool = False  # in the upper row
    marks: tuple[Mark, ...] = ()

    def label(self, key: str) -> str:
        """Of a curve in the legend; empty where the title says it all."""
        return key.rpartition("/")[2] if len(self.keys) > 1 or self.marks else ""

    def mark_label(self, mark: Mark) -> str:
        """Of a mark in the legend, with its value."""
        return f"{mark.label} ({self.factor * mark.value:.2g}{' %' if self.factor == 100 else ''})"


def metric_panels(keys: Sequence[str], marks: Sequence[Mark] = ()) -> list[MetricPanel]:
    """The panels that have something to show; levels stand in the order of the file.

    Args:
        keys: of the metrics.
        marks: from `marks_of` or `stored_marks`; each goes into the panel of its key.
    """

    def under(prefix: str) -> list[str]:
        names = [key for key in keys if key.startswith(f"{prefix}/")]
        return sorted(names, key=lambda key: (key != f"{prefix}/total", key != f"{prefix}/instance"))

    def panel(title: str, unit: str, shown: Sequence[str], *, percent: bool = False, **more: bool) -> MetricPanel:
        own = _named([mark for mark in marks if mark.key in shown and mark.key in keys])
        factor = 100.0 if percent else 1.0
        return MetricPanel(title=title, unit=unit, keys=list(shown), factor=factor, marks=own, **more)

    regions = [key for key in under("accuracy") if key != "accuracy/instance"]
    # a detector has other losses
    nats = "InfoNCE loss (nats)" if "loss/instance" in keys else "loss"
    right = "positive before all negatives (%)"
    panels = (
        panel("Losses", nats, under("loss"), large=True),
        panel("Accuracy, images", right, ["accuracy/instance"], percent=True, from_zero=True, large=True),
        panel("Accuracy, regions", right, regions, percent=True, from_zero=True, large=True),
        panel("Regions found again in another view", "found (%)", under(PROBED), percent=True, from_zero=True),
        panel("Learning rate", "learning rate", ["lr"], from_zero=True, smooth=False),
        panel("Gradient norm", "L2 norm before clipping", ["gradient/norm"], from_zero=True),
        panel("Throughput", "images / s", ["images_per_second"], from_zero=True),
        panel("Waiting for images", "share of the time (%)", ["data_wait"], percent=True, from_zero=True),
    )
    return [one for one in panels if any(key in keys for key in one.keys)]


def _named(marks: Sequence[Mark]) -> tuple[Mark, ...]:
    """The marks of a panel: with the name of their curve where there are several, one where all have one value."""
    if len({round(mark.value, 12) for mark in marks}) == 1:
        return tuple(marks[:1])
    return tuple(Mark(label=f"{m.label}, {m.key.rpartition('/')[2]}", value=m.value, key=m.key) for m in marks)


def marks_of(config: Mapping[str, Any]) -> list[Mark]:
    """Chance of each accuracy of a pre-training, and the norm at which its gradients are clipped.

    One positive stands among M negatives, so that chance is 1 / (1 + M). M is the queue for images; for a level it is
    the cells of the key maps, 3 x 3 means without a border, of the whole batch ("all") or of a group ("group").

    Args:
        config: content of the run's config.json; of anything but a pre-training nothing is known.
    """
    try:
        recipe = Recipe.from_json(config["recipe"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
    model, optim = recipe.model, recipe.optim
    marks = [Mark(label="chance", value=1 / (1 + model.queue_size), key="accuracy/instance")]
    for level in model.levels:
        cells = (math.ceil(recipe.views.image_size / level.stride) - 2) ** 2
        negatives = cells * (optim.batch_size if level.negatives == "all" else model.group_size)
        marks.append(Mark(label="chance", value=1 / (1 + negatives), key=f"accuracy/{level.name}"))
    if optim.clip_norm:
        marks.append(Mark(label="clipped above", value=optim.clip_norm, key="gradient/norm"))
    return marks


def stored_marks(records: Sequence[Mapping[str, object]]) -> list[Mark]:
    """Chance of the region correspondence, as the probes stored it with their readings."""
    found: dict[str, float] = {}
    for record in records:
        for key, value in record.items():
            if key.startswith(f"{CHANCE}/") and isinstance(value, int | float) and math.isfinite(value):
                found[f"{PROBED}/{key.partition('/')[2]}"] = float(value)
    return [Mark(label="chance", value=value, key=key) for key, value in found.items()]


def series_colours(panels: Sequence[MetricPanel]) -> dict[str, str]:
    """One colour a name, the same in all panels: P4's loss, accuracy and correspondence belong together."""
    names = dict.fromkeys(key.split("/")[-1] for panel in panels for key in panel.keys if "/" in key)
    others = [name for name in names if name != "total"]
    return {"total": TOTAL_COLOUR} | {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(others)}
