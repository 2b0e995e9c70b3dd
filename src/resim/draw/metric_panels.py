"""The diagrams of a run's metrics and the reference lines in them, as data for both the PNG and the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resim.runs.config import Recipe

# Okabe and Ito's colour-blind-safe colours without yellow, which is too faint on white; black is for the total
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
TOTAL_COLOUR = "#1a1a1a"
CORRESPONDENCE = "correspondence"
CORRESPONDENCE_CHANCE = f"{CORRESPONDENCE}_chance"


@dataclass(frozen=True, kw_only=True)
class ReferenceLine:
    """A constant that a curve is compared with, such as chance; drawn as a dashed horizontal line."""

    label: str
    value: float
    """In the unit of the file."""
    key: str
    """Metric whose colour the line takes."""


@dataclass(frozen=True, kw_only=True)
class MetricPanel:
    """One diagram of a run: the metrics that it shows as curves."""

    title: str
    unit: str
    """Label of the y axis."""
    keys: list[str]
    """Metrics, a curve each."""
    factor: float = 1.0
    """From the unit of the file to that of the y axis."""
    from_zero: bool = False
    """Whether the y axis begins at 0."""
    smooth: bool = True
    """Whether the running mean is drawn over the values."""
    large: bool = False
    """Whether the diagram belongs to the upper row."""
    references: tuple[ReferenceLine, ...] = ()

    def label(self, key: str) -> str:
        """Label of a curve in the legend; empty if the title suffices."""
        return key.rpartition("/")[2] if len(self.keys) > 1 or self.references else ""

    def reference_label(self, reference: ReferenceLine) -> str:
        """Label of a reference line in the legend, with its value."""
        return f"{reference.label} ({self.factor * reference.value:.2g}{' %' if self.factor == 100 else ''})"


def metric_panels(keys: Sequence[str], references: Sequence[ReferenceLine] = ()) -> list[MetricPanel]:
    """The panels for which there are metrics; levels keep the order of the file.

    Args:
        keys: of the metrics.
        references: from `reference_lines` or `chance_lines`; each belongs to the panel of its key.
    """

    def keys_under(prefix: str) -> list[str]:
        names = [key for key in keys if key.startswith(f"{prefix}/")]
        return sorted(names, key=lambda key: (key != f"{prefix}/total", key != f"{prefix}/instance"))

    def panel(title: str, unit: str, shown: Sequence[str], *, percent: bool = False, **settings: bool) -> MetricPanel:
        lines = _labelled([line for line in references if line.key in shown and line.key in keys])
        factor = 100.0 if percent else 1.0
        return MetricPanel(title=title, unit=unit, keys=list(shown), factor=factor, references=lines, **settings)

    regions = [key for key in keys_under("accuracy") if key != "accuracy/instance"]
    # a detector has other losses
    loss_unit = "InfoNCE loss (nats)" if "loss/instance" in keys else "loss"
    top1 = "positive ranked first (%)"
    correspondence = keys_under(CORRESPONDENCE)
    panels = (
        panel("Loss", loss_unit, keys_under("loss"), large=True),
        panel("Accuracy on images", top1, ["accuracy/instance"], percent=True, from_zero=True, large=True),
        panel("Accuracy on regions", top1, regions, percent=True, from_zero=True, large=True),
        panel("Region correspondence", "windows matched correctly (%)", correspondence, percent=True, from_zero=True),
        panel("Learning rate", "learning rate", ["lr"], from_zero=True, smooth=False),
        panel("Gradient norm", "L2 norm before clipping", ["gradient/norm"], from_zero=True),
        panel("Throughput", "images / s", ["images_per_second"], from_zero=True),
        panel("Waiting for images", "fraction of the time (%)", ["data_wait"], percent=True, from_zero=True),
    )
    return [panel for panel in panels if any(key in keys for key in panel.keys)]


def _labelled(lines: Sequence[ReferenceLine]) -> tuple[ReferenceLine, ...]:
    """The reference lines of a panel: one if all values are equal, otherwise labelled with their curves' names."""
    if len({round(line.value, 12) for line in lines}) == 1:
        return tuple(lines[:1])
    return tuple(
        ReferenceLine(label=f"{line.label}, {line.key.rpartition('/')[2]}", value=line.value, key=line.key)
        for line in lines
    )


def reference_lines(config: Mapping[str, Any]) -> list[ReferenceLine]:
    """Chance of each accuracy of a pre-training, and the norm at which its gradients are clipped.

    A positive is ranked among M negatives, so chance is 1 / (1 + M). For images, M is the size of the queue; for a
    level, the number of cells of the key maps, 3 x 3 means without a border, of the batch ("all"), of a host ("node")
    or of a group ("group").

    Args:
        config: content of the run's config.json.

    Returns:
        The lines; empty if the run is not a pre-training.
    """
    try:
        recipe = Recipe.from_json(config["recipe"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
    model, optim = recipe.model, recipe.optim
    lines = [ReferenceLine(label="chance", value=1 / (1 + model.queue_size), key="accuracy/instance")]
    for level in model.levels:
        cells = (math.ceil(recipe.views.image_size / level.stride) - 2) ** 2
        node = config.get("node_images")
        node = node if type(node) is int and node > 0 else optim.batch_size  # missing or damaged
        images = {"all": optim.batch_size, "node": node, "group": model.group_size}[level.negatives]
        lines.append(ReferenceLine(label="chance", value=1 / (1 + cells * images), key=f"accuracy/{level.name}"))
    if optim.clip_norm:
        lines.append(ReferenceLine(label="clipping threshold", value=optim.clip_norm, key="gradient/norm"))
    return lines


def chance_lines(records: Sequence[Mapping[str, object]]) -> list[ReferenceLine]:
    """Chance of the region correspondence, as the probes store it with their readings."""
    chances: dict[str, float] = {}
    for record in records:
        for key, value in record.items():
            prefix, _, level = key.partition("/")
            if prefix == CORRESPONDENCE_CHANCE and level and isinstance(value, int | float) and math.isfinite(value):
                chances[f"{CORRESPONDENCE}/{level}"] = float(value)
    return [ReferenceLine(label="chance", value=value, key=key) for key, value in chances.items()]


def series_colours(panels: Sequence[MetricPanel]) -> dict[str, str]:
    """A colour for each level, the same in all panels: P4 has one colour in loss, accuracy and correspondence."""
    names = dict.fromkeys(key.split("/")[-1] for panel in panels for key in panel.keys if "/" in key)
    others = [name for name in names if name != "total"]
    return {"total": TOTAL_COLOUR} | {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(others)}
