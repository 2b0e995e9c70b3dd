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
from resim.reading import parse_json
from resim.runs.checkpoints import load_checkpoint
from resim.version import __version__

if TYPE_CHECKING:
    from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN


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
        UserError: no such file, or not a detector's checkpoint of this version.
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
    _check_types(state)

    from resim.detection.detector import build_detector  # slow to import: where there is a detector
    from resim.detection.freeze import freeze_parts

    model = build_detector(
        recipe.detector, recipe.images, num_classes=len(state["classes"]), num_keypoints=len(state["keypoint_names"])
    )
    freeze_parts(model, recipe.detector)
    model.load_state_dict(state["model"])
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


def _check_types(state: Mapping[str, Any]) -> None:
    """Raise a TypeError or a ValueError if an entry of a detector's checkpoint cannot be what it is named after."""
    for name, kind in (("classes", str), ("category_ids", int), ("keypoint_names", str), ("keypoint_labels", int)):
        entries = state[name]
        if not isinstance(entries, list | tuple) or not all(type(entry) is kind for entry in entries):
            raise TypeError(f"{name} must be a list of {kind.__name__}")
    if len(state["classes"]) != len(state["category_ids"]):
        raise ValueError(f"{len(state['classes'])} classes and {len(state['category_ids'])} category_ids")
    if type(state["step"]) is not int:
        raise TypeError("step must be of type int")
    if state["precision"] not in ("float32", "bf16"):
        raise ValueError("precision must be float32 or bf16")


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
