"""ReSim: region similarity pre-training of detection backbones on images without labels."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from resim.version import __version__

if TYPE_CHECKING:
    from resim import recipes as recipes
    from resim.detection.checkpoint import load_detector as load_detector
    from resim.detection.compare import compare as compare
    from resim.detection.export_any import export as export
    from resim.detection.train import train_detector as train_detector
    from resim.errors import UserError as UserError
    from resim.exchange.load import load as load
    from resim.exchange.load import load_published as load_published
    from resim.exchange.weights import read_weights as read_weights
    from resim.model.config import ModelConfig as ModelConfig
    from resim.model.infonce import info_nce as info_nce
    from resim.model.resim import ReSim as ReSim
    from resim.probes.run import probe as probe
    from resim.regions.level import Level as Level
    from resim.regions.pooling import precise_roi_pool as precise_roi_pool
    from resim.regions.windows import inside_view as inside_view
    from resim.regions.windows import map_windows as map_windows
    from resim.regions.windows import window_grid as window_grid
    from resim.runs.config import OptimConfig as OptimConfig
    from resim.runs.config import Recipe as Recipe
    from resim.runs.config import RunConfig as RunConfig
    from resim.training.pretrain import pretrain as pretrain
    from resim.views.config import ViewsConfig as ViewsConfig
    from resim.views.views import Views as Views

_HOMES = {
    "Level": "resim.regions.level",
    "ModelConfig": "resim.model.config",
    "OptimConfig": "resim.runs.config",
    "ReSim": "resim.model.resim",
    "Recipe": "resim.runs.config",
    "RunConfig": "resim.runs.config",
    "UserError": "resim.errors",
    "Views": "resim.views.views",
    "ViewsConfig": "resim.views.config",
    "compare": "resim.detection.compare",
    "export": "resim.detection.export_any",
    "info_nce": "resim.model.infonce",
    "inside_view": "resim.regions.windows",
    "load": "resim.exchange.load",
    "load_detector": "resim.detection.checkpoint",
    "load_published": "resim.exchange.load",
    "map_windows": "resim.regions.windows",
    "precise_roi_pool": "resim.regions.pooling",
    "pretrain": "resim.training.pretrain",
    "probe": "resim.probes.run",
    "read_weights": "resim.exchange.weights",
    "train_detector": "resim.detection.train",
    "window_grid": "resim.regions.windows",
}
__all__ = [
    "Level",
    "ModelConfig",
    "OptimConfig",
    "ReSim",
    "Recipe",
    "RunConfig",
    "UserError",
    "Views",
    "ViewsConfig",
    "__version__",
    "compare",
    "export",
    "info_nce",
    "inside_view",
    "load",
    "load_detector",
    "load_published",
    "map_windows",
    "precise_roi_pool",
    "pretrain",
    "probe",
    "read_weights",
    "recipes",
    "train_detector",
    "window_grid",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import resim` is cheap."""
    if name == "recipes":
        return importlib.import_module("resim.recipes")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'resim' has no attribute {name!r}")
