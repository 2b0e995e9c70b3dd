"""How large the demo's data, networks and parts are."""

from __future__ import annotations

from dataclasses import dataclass, field

from resim import recipes
from resim.demo.plan import Bounds
from resim.runs.config import Recipe


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large the demo's data, networks and parts are. Smaller ones show less, in seconds."""

    scenes: int = 512
    """Scenes that are drawn to train on, at most."""
    held_out: int = 256
    """Scenes that are drawn to measure on, at most, or images of one's own that are measured on."""
    labelled: int = 64
    """Scenes of those to train on whose labels are used."""
    evaluated: int = 128
    """Held-out scenes that detectors are evaluated on."""
    most_images: int = 2048
    """Of one's own, to train on."""
    measured: float = 2.0
    """Seconds over which each speed is measured, two turns at least."""
    recipe: Recipe = field(default_factory=recipes.quick)
    """Of ReSim's pre-training, without its length and queue."""
    bounds: Bounds = field(default_factory=Bounds)
    """Least and most of each part."""
