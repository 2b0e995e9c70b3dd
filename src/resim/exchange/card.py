"""The model card of exported weights: network, training data, recipe, probes and licence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resim.errors import UserError
from resim.exchange.weights import Weights
from resim.reading import read_json
from resim.runs.config import Recipe

CITATION = """@inproceedings{xiao2021region,
  title     = {Region Similarity Representation Learning},
  author    = {Xiao, Tete and Reed, Colorado J and Wang, Xiaolong and Keutzer, Kurt and Darrell, Trevor},
  booktitle = {International Conference on Computer Vision (ICCV)},
  year      = {2021},
}"""


def model_card(weights: Weights, recipe: Recipe, *, probes: Mapping[str, Any] | None) -> str:
    """The card in Markdown, with the header that the Hugging Face hub reads."""
    model = recipe.model
    how = "pre-trained on images without labels" if weights.recipe else "weights of another program under resim's names"
    header = ["---", "library_name: resim", "tags: [self-supervised-learning, object-detection, resim]"]
    header += [f"license: {weights.licence.lower()}"] if weights.licence else []
    lines = [
        *header,
        "---",
        f"# {recipe.name}, {model.backbone}",
        "",
        f"{model.backbone}{' with an FPN' if any(level.from_fpn for level in model.levels) else ''}, {how}.",
        "",
        "```python",
        "import resim",
        'encoder = resim.load("this folder, or its name on the hub")',
        "maps = encoder.backbone(images)  # C3, C4, C5; images: RGB, normalised by ImageNet's mean and deviation",
        "```",
        "",
        *_facts(weights, recipe),
        "",
        "## Probes",
        "",
        *(_probes(probes) if probes else ["There were none when this card was written."]),
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


def _facts(weights: Weights, recipe: Recipe) -> list[str]:
    """The table of source, data, training and licence."""
    model, optim = recipe.model, recipe.optim
    levels = ", ".join(str(level) for level in model.levels) or "none (the global loss alone)"
    program = "made by resim"
    if weights.recipe is None:
        program = "of another program; the recipe below is inferred from names and shapes"
    return [
        "| | |",
        "| --- | --- |",
        f"| source | {weights.kind}, {program} |",
        *([f"| origin | {weights.origin} |"] if weights.origin else []),
        f"| data | {_data(weights.data)} |",
        f"| epochs | {_epochs(weights, optim.epochs)} |",
        f"| levels | {levels} |",
        f"| views | {recipe.views.image_size} px |",
        f"| batch | {optim.batch_size} in groups of {model.group_size} |",
        *licence_rows(weights),
    ]


def licence_rows(weights: Weights) -> list[str]:
    """The rows of a card's table on the licence and its evidence."""
    if weights.licence:
        return [f"| licence | {weights.licence} |", f"| licence taken from | {weights.licence_source} |"]
    return [
        "| licence | unknown, not stated: to be stated by the publisher of these weights |",
        f"| licence taken from | nowhere: {weights.licence_source} |",
    ]


def probes_in_folder(weights: Weights) -> Mapping[str, Any] | None:
    """The results for these weights in the probe.json of the checkpoint's or the run's folder.

    None if there is no such file, or if it has results of other files or other steps only.

    Raises:
        UserError: as `read_probes`.
    """
    folder = weights.path.parent
    path = (folder.parent if folder.name == "checkpoints" else folder) / "probe.json"
    if not path.is_file():
        return None
    results = read_probes(path, weights, others=False)
    return results if results.get("networks") else None


def read_probes(path: Path, weights: Weights, *, others: bool = True) -> Mapping[str, Any]:
    """The results of `resim probe` for these weights; or any JSON object.

    Paths, commands and versions of the machine are left out.

    Args:
        path: of the results.
        weights: the weights that were probed.
        others: if no result has the path of these weights, because the run was moved, take all results.

    Raises:
        UserError: the file has no results; with `others`, it has results of another step of these weights.
    """
    try:
        data = read_json(path)
    except OSError as error:
        raise UserError(f"--probes {path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"--probes {path}: is no JSON ({error})") from None
    if not isinstance(data, dict):
        raise UserError(f"--probes {path}: contains no object with results")
    networks = data.get("networks")
    if not isinstance(networks, list):
        return data
    entries = [entry for entry in networks if isinstance(entry, dict)]
    same_file = [entry for entry in entries if _is_of(entry, weights)]
    same_step = [entry for entry in same_file if entry.get("kind") == weights.kind]  # the kind contains the step
    if others and same_file and not same_step:
        raise UserError(f"--probes {path}: is of another step of {weights.path}: run resim probe again")
    kept = {key: _without_paths(data[key]) for key in ("train", "test", "settings") if key in data}
    return kept | {"networks": [_without_paths(entry) for entry in (same_step or entries if others else same_step)]}


def _is_of(entry: Mapping[str, Any], weights: Weights) -> bool:
    path = entry.get("path")
    return isinstance(path, str) and Path(path).resolve() == weights.path.resolve()


def _without_paths(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    named = {"source": Path(entry["source"]).name} if isinstance(entry.get("source"), str) else {}
    others = ("path", "minus", "less_first", "less_reference")
    return {key: value for key, value in entry.items() if key not in others} | named


def source_names(data: Mapping[str, Any]) -> list[str]:
    """The names of the folders with the training images, without their paths."""
    sources = data.get("sources")
    return [Path(str(source)).name for source in sources] if isinstance(sources, list) else []


def _probes(probes: Mapping[str, Any]) -> list[str]:
    return ["```json", json.dumps(probes, indent=2), "```"]


def _data(data: Mapping[str, Any] | None) -> str:
    if not data:
        return "not stated in the file"
    names = ", ".join(source_names(data)) or "unnamed"
    return f"{data.get('images')} images ({names}; fingerprint {data.get('hash')})"


def _epochs(weights: Weights, planned: int) -> str:
    if weights.epoch is None:
        return "not stated in the file"
    return f"{weights.epoch} of {planned}" if weights.recipe else str(weights.epoch)
