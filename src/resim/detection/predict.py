"""Detections in the form of COCO's results.

Shapes: n detections, H x W pixels of an image, K keypoints.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor, nn

from resim.counts import counted
from resim.datasets.records import DetectionData
from resim.datasets.yolo_layout import open_yolo, split_images
from resim.detection.checkpoint import load_detector
from resim.detection.pictures import draw_results
from resim.detection.samples import DetectionBatch, Sample, TestSet, collate_samples, read_samples
from resim.detection.summary import summary
from resim.distributed.processes import Processes, start_processes
from resim.errors import UserError
from resim.runs.bars import show_bar
from resim.runs.checkpoints import write_atomically
from resim.views.decode import BadImageError, Photo
from resim.views.folder import find_images
from resim.views.loader import make_loader
from resim.views.waiting import StalledError

Result = dict[str, Any]


@torch.inference_mode()
def detect(
    model: nn.Module,
    data: DetectionData,
    processes: Processes,
    *,
    precision: Literal["float32", "bf16"] = "float32",
    batch: int = 1,
    workers: int = 0,
    report: Callable[[int], None] | None = None,
    bad: dict[str, str] | None = None,
    signals: Sequence[int] = (),
) -> list[Result]:
    """Run a detector over all images, shared among the processes.

    Args:
        model: returns what torchvision's detectors return; it is put into evaluation mode and back.
        data: the images, and the category ids of the classes.
        processes: all of which call this.
        precision: of convolutions.
        batch: images together.
        workers: processes that decode.
        report: called with the number of images done by this process.
        bad: takes the paths of the images that cannot be decoded, of all processes, and why; None: these raise.
        signals: the list of `catch_termination`, if one is to end this where the loader hangs.

    Returns:
        The detections of all images, on every process, in the order of the data.

    Raises:
        StalledError: one of `signals` has ended it, on any process; all raise it.
        UserError: an image that cannot be decoded, where `bad` is None.
    """
    positions = list(range(processes.rank, len(data), processes.count))
    order: Any = [positions[start : start + batch] for start in range(0, len(positions), batch)]
    loader = make_loader(TestSet(data.records), order, workers=workers, join=collate_samples)
    was_training = model.training
    model.eval()
    detections: dict[int, list[Result]] = {}
    faults: dict[str, str] = {}
    num_read = 0
    try:
        for batch_read in loader.read(signals) if bad is not None else read_samples(loader, signals):
            num_read += 1
            for sample in batch_read.samples:
                if sample.fault:
                    detections[sample.index] = []
                    faults[data.records[sample.index].image] = sample.fault
            images = DetectionBatch([sample for sample in batch_read.samples if not sample.fault])
            if not len(images):
                continue
            for sample, output in zip(images.samples, run(model, images, processes.device, precision), strict=True):
                detections[sample.index] = to_results(output, data.records[sample.index].image_id, data.category_ids)
            if report is not None:
                report(len(detections))
    finally:
        model.train(was_training)
    if processes.agree(num_read < len(order))[0]:
        raise StalledError("a signal has ended the detection, since an image is not read")
    if bad is not None:
        for part in processes.gather_objects(faults):
            bad |= part
    together: dict[int, list[Result]] = {}
    for part in processes.gather_objects(detections):
        together |= part
    return [result for position in sorted(together) for result in together[position]]


def run(
    model: nn.Module, batch: DetectionBatch, device: torch.device, precision: Literal["float32", "bf16"]
) -> Sequence[dict[str, Tensor]]:
    """Torchvision's detections of a batch, on the CPU."""
    images, _ = batch.to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        outputs = model(images)
    return [{name: value.float().cpu() for name, value in output.items()} for output in outputs]


def to_results(output: dict[str, Tensor], image_id: int | str, category_ids: Sequence[int]) -> list[Result]:
    """Torchvision's detections of an image as entries of a COCO results file.

    Args:
        output: boxes (n, 4) px, scores (n,), labels (n,) from 1, and masks (n, 1, H, W) in [0, 1] or keypoints
            (n, K, 3).
        image_id: of the image.
        category_ids: of label 1, 2, ...
    """
    boxes = output["boxes"].double().numpy()
    sizes = boxes[:, 2:] - boxes[:, :2]
    results = [
        {
            "image_id": image_id,
            "category_id": category_ids[int(label) - 1],
            "bbox": [*map(float, box[:2]), *map(float, size)],
            "score": float(score),
        }
        for box, size, label, score in zip(boxes, sizes, output["labels"], output["scores"], strict=True)
    ]
    if "masks" in output:
        masks = (output["masks"][:, 0] >= 0.5).numpy().astype(np.uint8)
        for result, mask in zip(results, masks, strict=True):
            code: Any = rle.encode(np.asfortranarray(mask))
            result["segmentation"] = {"size": code["size"], "counts": code["counts"].decode()}
    if "keypoints" in output:
        points = output["keypoints"].double().numpy() - [0.5, 0.5, 0.0]  # COCO counts pixels
        for result, one in zip(results, points, strict=True):
            result["keypoints"] = one.ravel().tolist()
    return results


def predict_images(
    model: str | Path,
    images: Sequence[str | Path],
    out: Path,
    *,
    threshold: float = 0.5,
    pictures: bool = True,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> list[Result]:
    """Detect in images without labels; write `results.json`, and the images with their detections.

    A last line sums up: how many detections reach the threshold, in how many images, and the best score of the others.

    Args:
        model: a fine-tuning's folder or checkpoint.
        images: images, folders of them, lists of paths, or a YOLO data set's `data.yaml`, whose `val` images (else
            `test`, `train`) are taken.
        out: folder. `results.json` has COCO results whose `image_id` is the image's path; `classes.json` the names of
            its category ids; each picture has its image's name, numbered where two would have the same.
        threshold: score from which a detection is drawn; `results.json` has all.
        pictures: draw them.
        device: where to compute.

    Returns:
        The detections.

    Raises:
        UserError: no images, no detector, or a folder that cannot be written to, holds a run or the images themselves.
    """
    paths = find_images(_pictures(images))
    if note := paths.note():
        print(note)
    _check_out(out, paths)
    results: list[Result] = []
    scores: dict[str, list[float]] = {}
    undecodable = []
    used_names: set[str] = set()
    with start_processes(device) as processes, show_bar("detecting", len(paths)) as show_done:
        detector = load_detector(model, processes.device)
        names = dict(zip(detector.category_ids, detector.classes, strict=True))
        for number, path in enumerate(paths):
            show_done(number)
            try:
                pixels = np.array(Photo(path).decode())
            except BadImageError as error:
                undecodable.append(f"{path}\t{error}")
                continue
            sample = Sample(torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), {}, 0, 0, 0)
            with torch.inference_mode():
                output = run(detector.model, DetectionBatch([sample]), processes.device, detector.precision)[0]
            detections = to_results(output, path, detector.category_ids)
            results += detections
            scores[path] = [result["score"] for result in detections]
            if pictures:
                drawn = draw_results(pixels, detections, names, threshold=threshold)
                write_atomically(_free_name(out, path, used_names), lambda file, drawn=drawn: drawn.save(file, "jpeg"))
    for name, content in (("results.json", results), ("classes.json", names)):
        text = json.dumps(content)
        write_atomically(out / name, lambda file, text=text: file.write(text.encode()))
    if undecodable:
        text = "".join(f"{line}\n" for line in undecodable)
        write_atomically(out / "bad_files.txt", lambda file: file.write(os.fsencode(text)))
        first = undecodable[0].replace("\t", ": ", 1)
        line = f"passed over: {counted(len(undecodable), 'image')} that cannot be decoded, the first is {first}"
        print(f"{line}; see {out / 'bad_files.txt'}")
    if scores:
        print(summary(scores, threshold, least=detector.recipe.detector.score_threshold))
    return results


def _pictures(sources: Sequence[str | Path]) -> list[str | Path]:
    """The sources, and in place of a YOLO data set's file the images of a split."""
    images: list[str | Path] = []
    for source in sources:
        path = Path(source).expanduser()
        if path.suffix.lower() not in (".yaml", ".yml") or not path.is_file():
            images.append(source)
            continue
        data = open_yolo(path, ("",))  # the names of its classes are not needed
        split = next((name for name in ("val", "test", "train") if data.splits.get(name)), "val")
        listed = split_images(data, split)
        odd = f", {len(listed.renamed)} not as it says" if listed.renamed else ""
        unread = f", {len(listed.unread)} more of formats that are not read" if listed.unread else ""
        print(f"{path}: {counted(len(listed.images), 'image')} of {split}{odd}{unread}")
        images += listed.images
    return images


def _check_out(out: Path, paths: Sequence[str]) -> None:
    """Raise if what is written would replace an image that is read, or the results of a run."""
    if (out / "config.json").exists():
        raise UserError(f"--out {out}: holds a run, whose own results would be replaced: name another folder")
    inside = next((path for path in paths if Path(path).resolve().parent == out.resolve()), None)
    if inside is not None:
        raise UserError(f"--out {out}: holds {Path(inside).name}, which is to be read: name another folder")


def _free_name(out: Path, path: str, used_names: set[str]) -> Path:
    stem, number = Path(path).stem, 1
    name = stem
    while name in used_names:
        number += 1
        name = f"{stem}-{number}"
    used_names.add(name)
    return out / f"{name}.jpg"
