"""The sizes of the demo's data, networks and parts."""

from __future__ import annotations

from dataclasses import dataclass, field

from resim import recipes
from resim.demo.plan import Bounds
from resim.runs.config import Recipe


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of the demo's data, networks and parts. Smaller ones show less, in seconds."""

    scenes: int = 512
    """Maximum number of scenes to train on."""
    held_out: int = 256
    """Maximum number of scenes to evaluate on, or number of the user's images for the probes."""
    labelled: int = 64
    """Training scenes whose labels are used."""
    evaluated: int = 128
    """Held-out scenes on which detectors are evaluated."""
    most_images: int = 2048
    """Maximum number of the user's images to train on."""
    measured: float = 2.0
    """Seconds over which each speed is measured (at least two turns)."""
    recipe: Recipe = field(default_factory=recipes.quick)
    """Recipe of ReSim's pre-training; its length and queue are set by the plan."""
    bounds: Bounds = field(default_factory=Bounds)
    """Minimum and maximum of each part."""
