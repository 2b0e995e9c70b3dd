"""The model card of an exported detector."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from resim.detection.checkpoint import TrainedDetector
from resim.detection.config import DetectRecipe
from resim.exchange.card import CITATION, licence_rows
from resim.exchange.weights import Weights


def detector_card(
    detector: TrainedDetector,
    recipe: DetectRecipe,
    weights: Weights,
    scores: dict[str, Any] | None,
    *,
    loader: str,
    split: Mapping[str, Any] | None = None,
) -> str:
    """A card in Markdown, with the header that the Hugging Face hub reads.

    Args:
        detector: that is exported.
        recipe: of the exported weights.
        weights: its backbone, with licence and origin.
        scores: the line of the run's `scores.jsonl` that is of these weights.
        loader: name of the Python file that builds it in torchvision.
        split: what the run held out of its images by `--val-fraction`; None: nothing.
    """
    config = recipe.detector
    kind = "Mask R-CNN" if config.masks else "Keypoint R-CNN" if config.keypoints else "Faster R-CNN"
    neck = "with an FPN" if config.neck == "fpn" else "on C4"
    header = ["---", "library_name: resim", "pipeline_tag: object-detection", "tags: [object-detection, resim]"]
    header += [f"license: {weights.licence.lower()}"] if weights.licence else []
    lines = [
        *header,
        "---",
        f"# {recipe.name}, {kind}, {config.backbone} {neck}",
        "",
        "```python",
        "import resim",
        'model = resim.load_detector("this folder or file, or its name on the hub").model  # a detector of torchvision',
        "",
        "import runpy  # the same without resim",
        f'model = runpy.run_path("{loader}")["load_detector"]()',
        "",
        "detections = model([image])[0]  # image: (3, height, width), RGB in [0, 1]; resized by the model",
        "```",
        "",
        "| | |",
        "| --- | --- |",
        f"| steps | {detector.step} of {recipe.tune.steps}, of {recipe.tune.batch_size} images |",
        f"| classes | {len(detector.classes)}: {_cell(', '.join(detector.classes))} |",
        *([f"| keypoints | {_cell(', '.join(detector.keypoint_names))} |"] if config.keypoints else []),
        f"| shorter side at test | {recipe.images.test_size} px |",
        f"| lowest score of a detection | {config.score_threshold} |",
        *([f"| origin | {_cell(weights.origin)} |"] if weights.origin else []),
        *([f"| evaluated on | {held_out_words(split)} |"] if split is not None else []),
        *licence_rows(weights),
        "",
        "## Scores",
        "",
        *(
            ["```json", json.dumps(scores, indent=2), "```"]
            if scores
            else ["There were none when this card was written."]
        ),
        "",
        "## Recipe",
        "",
        "```json",
        json.dumps(recipe.to_json(), indent=2),
        "```",
        "",
        "## Citation",
        "",
        "```bibtex",
        CITATION,
        "```",
        "",
    ]
    return "\n".join(lines)


def held_out_words(split: Mapping[str, Any]) -> str:
    """The share of the images that was never trained on, as a `config.json` has it, in words."""
    return (
        f"{len(split['val_images'])} images that were never trained on: --val-fraction {split['val_fraction']:g}, seed "
        f"{split['seed']}"
    )


def _cell(text: str) -> str:
    """A text without line breaks and bars, which would end a table's cell."""
    return " ".join(text.replace("|", "\\|").split())
