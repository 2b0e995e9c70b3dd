"""A detector's checkpoint, and the detector that it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from resim.datasets.records import DetectionData
from resim.detection.config import DetectRecipe
from resim.errors import UserError
from resim.exchange.files.contents import read_contents, tensors_in
from resim.exchange.load import find_file
from resim.exchange.networks.architecture import refuse_infinite
from resim.reading import parse_json
from resim.runs.checkpoints import load_checkpoint
from resim.version import __version__

if TYPE_CHECKING:
    from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN


_LISTS = (
    ("classes", str, "texts"), ("category_ids", int, "whole numbers"), ("keypoint_names", str, "texts"),
    ("keypoint_labels", int, "whole numbers"),
)  # fmt: skip
_PRECISIONS = ("float32", "bf16")


def detector_state(recipe: DetectRecipe, trained_on: DetectionData, init: str, **entries: Any) -> dict[str, Any]:
    """A detector's checkpoint: its recipe, classes and initialisation, and further entries such as its weights."""
    return {
        "resim": __version__,
        "kind": "detect",
        "recipe": recipe.to_json(),
        "classes": list(trained_on.classes),
        "category_ids": list(trained_on.category_ids),
        "keypoint_names": list(trained_on.keypoint_names),
        "keypoint_labels": list(trained_on.keypoint_labels),
        "init": init,
    } | entries


def check_same_run(state: dict[str, Any], data: dict[str, Any], init: str) -> None:
    """Raise if a resumed fine-tuning would use other data or weights than it began with.

    Args:
        state: its checkpoint.
        data: `source` and `hash` of what is trained on, `val` and `val_hash` of what is evaluated on, `init_hash` of
            the weights to begin with (None: they no longer exist).
        init: the weights to begin with.

    Raises:
        UserError: other data, or other weights.
    """
    before = state["data"]
    if before["hash"] != data["hash"]:
        raise UserError(f"--resume with other data: the run began with {before['source']} as it was then")
    if before["val_hash"] != data["val_hash"]:
        evaluation = f"is evaluated on {before['val']} as it was then" if before["val"] else "is not evaluated"
        raise UserError(f"--resume with --val {data['val'] or 'left out'}: the run {evaluation}")
    if state["init"] != init:
        raise UserError(f"--resume with --init {init}: the run began with {state['init']}")
    if data["init_hash"] not in (None, before["init_hash"]):
        raise UserError(f"--init {init}: holds other weights than when the run began: name another --out")


@dataclass(frozen=True, kw_only=True)
class TrainedDetector:
    """A detector as a checkpoint holds it, in evaluation mode."""

    model: GeneralizedRCNN
    recipe: DetectRecipe
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    keypoint_names: tuple[str, ...]
    keypoint_labels: tuple[int, ...]
    precision: Literal["float32", "bf16"]
    source: str
    """File and step, for messages."""
    step: int


def load_detector(
    source: str | Path, device: torch.device | str = "cpu", *, revision: str | None = None
) -> TrainedDetector:
    """Load what `train_detector` wrote, a run's folder or a checkpoint, or what `export_detector` made of it.

    Args:
        source: the file or folder, or "user/name" on the Hugging Face hub.
        device: where to put the detector.
        revision: branch, tag or commit on the hub.

    Raises:
        UserError: no such file, not a detector's checkpoint of this version, or weights that are NaN or infinite.
    """
    path = find_file(source, revision)
    file = _file_in(path) if path.is_dir() else path
    state = _exported_safetensors(file) if file.suffix == ".safetensors" else load_checkpoint(file)
    if state.get("kind") == "detect" and "state_dict" in state:  # an export to torchvision
        state = _described(file, state.get("metadata"), state["state_dict"])
    if state.get("kind") != "detect":
        raise UserError(f"{file}: holds no detector but a pre-training: fine-tune it by resim detect train --init")
    try:
        return _build(file, state, device)
    except UserError:
        raise
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{file}: is no detector's checkpoint of this version ({type(error).__name__}: {reason})"
        ) from None


def _build(file: Path, state: Mapping[str, Any], device: torch.device | str) -> TrainedDetector:
    recipe = DetectRecipe.from_json(state["recipe"])
    _check_entries(state)
    refuse_infinite(file, {name: value for name, value in state["model"].items() if isinstance(value, torch.Tensor)})

    from resim.detection.detector import build_detector  # slow to import: where there is a detector
    from resim.detection.freeze import freeze_parts

    def build(tensors: Mapping[str, Any]) -> GeneralizedRCNN:
        classes, keypoints = len(state["classes"]), len(state["keypoint_names"])
        model = build_detector(recipe.detector, recipe.images, num_classes=classes, num_keypoints=keypoints)
        freeze_parts(model, recipe.detector)
        model.load_state_dict(tensors)
        return model

    with torch.device("meta"):  # where recipe, classes and tensors do not belong together, it raises without memory
        build({name: v.to("meta") if isinstance(v, torch.Tensor) else v for name, v in state["model"].items()})
    model = build(state["model"])
    return TrainedDetector(
        model=model.to(device).eval(),
        recipe=recipe,
        classes=tuple(state["classes"]),
        category_ids=tuple(state["category_ids"]),
        keypoint_names=tuple(state["keypoint_names"]),
        keypoint_labels=tuple(state["keypoint_labels"]),
        precision=state["precision"],
        source=f"{file}, step {state['step']}",
        step=state["step"],
    )


def _check_entries(state: Mapping[str, Any]) -> None:
    """Check the types of a checkpoint's entries, and that no tensor claims more than its storage has.

    Raises:
        ValueError: which entry, and what was expected.
    """
    for name, kind, noun in _LISTS:
        values = state[name]
        if not isinstance(values, (list, tuple)) or any(type(value) is not kind for value in values):
            raise ValueError(f"{name}: must be a list of {noun}")
    if len(state["category_ids"]) != len(state["classes"]):
        raise ValueError(f"{len(state['category_ids'])} category_ids for {len(state['classes'])} classes")
    if state["precision"] not in _PRECISIONS:
        raise ValueError(f"precision {state['precision']!r:.50}: must be one of {', '.join(_PRECISIONS)}")
    if type(state["step"]) is not int:
        raise ValueError(f"step {state['step']!r:.50}: must be a whole number")
    for name, value in state["model"].items():
        if isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu":
            claimed = value.numel() * value.element_size()
            if claimed > value.untyped_storage().nbytes():
                raise ValueError(f"{name!r:.100} claims {claimed} bytes, more than it has in the file")


def holds_detector(path: str | Path) -> bool:
    """Whether a file or folder holds a detector of ours: a fine-tuning's checkpoint or an export of one.

    Raises:
        UserError: as `read_contents`.
    """
    contents = read_contents(path)
    return "detect" in (contents.data.get("kind"), contents.metadata.get("kind"))


def description_of(detector: TrainedDetector, recipe: DetectRecipe) -> dict[str, Any]:
    """What an export records of a detector besides its weights, as plain data; `recipe` is of these weights."""
    names = ("classes", "category_ids", "keypoint_names", "keypoint_labels", "precision", "step")
    return {"recipe": recipe.to_json(), **{name: getattr(detector, name) for name in names}}


def _file_in(folder: Path) -> Path:
    """The file of a run's folder, or of a folder for the hub."""
    hub = folder / "model.safetensors"
    return hub if hub.is_file() else folder / "checkpoints" / "last.pt"


def _exported_safetensors(file: Path) -> dict[str, Any]:
    contents = read_contents(file)
    if contents.metadata.get("kind") != "detect":
        raise UserError(f"{file}: holds no detector that resim exported")
    tensors, _ = tensors_in(contents, contents.data)
    return _described(file, contents.metadata, tensors)


def _described(file: Path, metadata: Any, tensors: Any) -> dict[str, Any]:
    """The state that a checkpoint would have, of an export's metadata and tensors."""
    try:
        return {**parse_json(metadata["detector"]), "kind": "detect", "model": dict(tensors)}
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{file}: says nothing of its detector ({error})") from None
