"""Cityscapes' average precision of masks, by cityscapesScripts (an extra)."""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from resim.datasets.cityscapes import annotation_paths
from resim.datasets.records import DetectionData
from resim.errors import UserError
from resim.optional_packages import import_optional
from resim.scores.results import Scores, check_results

INSTALL = "pip install '.[cityscapes]' in resim's clone"


def cityscapes_scores(data: DetectionData, results: Sequence[dict[str, Any]], *, source: str = "results") -> Scores:
    """Cityscapes' AP (mean over IoU 0.50:0.05:0.95) and AP50 of masks, computed from the annotation files.

    Args:
        data: from `read_cityscapes`; a missing image of instance ids is drawn from the polygons.
        results: detections in the form of COCO results: `image_id`, `category_id` (Cityscapes' own: 26 is a car),
            `segmentation` (compressed RLE), `score`. As in the official evaluation, masks may overlap.
        source: of the results, for messages.

    Returns:
        `values`: `AP`, `AP50`, from 0 to 1; means over the classes that have an instance of at least 100 pixels,
        the smallest size that counts. `per_class`: AP.

    Raises:
        UserError: cityscapesScripts is not installed, or data or results are not of Cityscapes.
    """
    missing = f"Cityscapes' scores need cityscapesScripts: {INSTALL}"
    official = import_optional("cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling", missing)
    draw = import_optional("cityscapesscripts.preparation.json2instanceImg", missing)
    if data.kind != "cityscapes":
        raise UserError(
            f"{data.source}: not a Cityscapes data set, whose annotation files these scores need: choose other scores"
        )
    check_results(data, results, "segm", source)
    official.np = _Numpy()
    by_image: dict[int | str, list[dict[str, Any]]] = {record.image_id: [] for record in data.records}
    for entry in results:
        by_image[entry["image_id"]].append(entry)

    with _scratch() as folder, contextlib.redirect_stdout(io.StringIO()):
        temporary = Path(folder).resolve()
        args = copy.copy(official.args)
        args.quiet, args.JSONOutput, args.colorized = True, False, False
        args.gtInstancesFile = str(temporary / "gtInstances.json")
        args.predictionPath = str(temporary)
        truths, predictions = [], []
        for record in data.records:
            instances, polygons = annotation_paths(record.image)
            if not instances.is_file():
                instances = temporary / instances.name
                annotation = draw.Annotation()
                annotation.fromJsonFile(str(polygons))
                drawn = np.asarray(draw.createInstanceImage(annotation, "ids"))
                _write_png(instances, drawn.astype(np.uint16))  # Pillow 13 writes no 32-bit PNG
            truths.append(str(instances))
            predictions.append(str(_write_predictions(temporary, str(record.image_id), by_image[record.image_id])))
        # the parts of evaluateImgLists, which itself would write a matches.json into the current folder
        official.setInstanceLabels(args)
        matches = official.matchGtWithPreds(predictions, truths, official.getGtInstances(truths, args), args)
        averages = official.computeAverages(official.evaluateMatches(matches, args), args)
    values = {"AP": float(averages["allAp"]), "AP50": float(averages["allAp50%"])}
    per_class = {name: float(averages["classes"][name]["ap"]) for name in data.classes}
    return Scores(kind="segm", values=values, per_class=per_class)


@contextlib.contextmanager
def _scratch() -> Iterator[str]:
    """A temporary folder for the files that the official evaluation reads.

    Raises:
        UserError: a file in it cannot be written.
    """
    folder = ""
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield folder
    except OSError as error:
        place = Path(error.filename or folder or tempfile.gettempdir()).resolve()
        if folder and not place.is_relative_to(Path(folder).resolve()):  # an annotation file, which cannot be read
            raise
        reason = error.strerror or error
        raise UserError(
            f"{place}: Cityscapes' evaluation cannot write its temporary files there ({reason}): set TMPDIR"
        ) from None


class _Numpy:
    """numpy with the `in1d` that cityscapesScripts 2.3 calls, which numpy 2.4 removed."""

    def __getattr__(self, name: str) -> Any:
        return np.isin if name == "in1d" else getattr(np, name)


def _write_png(path: Path, pixels: np.ndarray) -> None:
    """Write by Python's file, since Pillow ignores that a full disk takes only a part."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "png", compress_level=1)
    path.write_bytes(content.getvalue())


def _write_predictions(folder: Path, name: str, results: list[dict[str, Any]]) -> Path:
    """Write the detections of an image as in a submission to Cityscapes: a list, and an image for each mask."""
    lines = []
    for index, entry in enumerate(results):
        mask = np.asarray(rle.decode(entry["segmentation"]))
        _write_png(folder / f"{name}_{index}.png", 255 * mask)
        lines.append(f"{name}_{index}.png {int(entry['category_id'])} {float(entry['score'])!r}\n")
    path = folder / f"{name}_pred.txt"
    path.write_text("".join(lines))
    return path
