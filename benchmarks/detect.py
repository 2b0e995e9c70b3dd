"""Images a second of fine-tuning and of detecting, here against torchvision's reference training, in one run.

    python benchmarks/detect.py                          # ResNet-50-FPN Mask R-CNN on the package's scenes
    python benchmarks/detect.py --device cuda --batch 16 --size 800
    python benchmarks/detect.py --scores                        # COCO's evaluation of 5,000 images' worth of results

The plain side is what torchvision's reference scripts do: its own `maskrcnn_resnet50_fpn` (frozen BatchNorm, FPN
without), float32, SGD; it is fed by our loader, so that what is compared is the step. Ours is the same network built
here; its rows differ in precision and layout alone. Steps are taken in turn (plain, ours, plain, ours, ...) on the same
images, so that a drift of the machine's speed hits all; loading is part of the rows that say so.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from resim.datasets.coco import read_coco
from resim.datasets.records import DetectionData
from resim.detection.config import DetectorConfig, ImagesConfig, TuneConfig
from resim.detection.detector import build_detector
from resim.detection.predict import run
from resim.detection.samples import DetectionBatch, ShapeOrder, TrainingSet, collate_samples, read_samples
from resim.detection.step import make_detector_stepper
from resim.distributed.processes import Processes
from resim.scenes.scenes import write_scenes
from resim.views.loader import make_loader

LR = 0.0  # a step costs the same, and all sides keep the same weights and find as many objects


def detector_config(regions: int) -> DetectorConfig:
    """The network of torchvision's `maskrcnn_resnet50_fpn`."""
    return DetectorConfig(
        backbone="resnet50", fpn_width=256, norm="frozen", fpn_norm=False, masks=True, rpn_regions=min(256, regions),
        box_regions=regions, proposals_train=2000,
    )  # fmt: skip


class Plain:
    """Torchvision's reference training: its model, its transforms, float32."""

    def __init__(self, data: DetectionData, options: argparse.Namespace, device: torch.device) -> None:
        # maskrcnn_resnet50_fpn by its parts: without weights to load it would put trained BatchNorm in
        backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=5)
        self.model: Any = MaskRCNN(
            backbone, num_classes=len(data.classes) + 1, min_size=options.size,
            box_batch_size_per_image=options.regions, rpn_batch_size_per_image=min(256, options.regions),
        ).to(device)  # fmt: skip
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LR, momentum=0.9, weight_decay=1e-4)
        self.device = device

    def step(self, batch: DetectionBatch) -> float:
        """One step of SGD; its loss."""
        self.model.train()
        images, targets = batch.to(self.device)
        total = torch.stack(list(self.model(images, targets).values())).sum()
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        return float(total.detach())

    @torch.inference_mode()
    def detect(self, batch: DetectionBatch) -> int:
        """Detections of the images."""
        self.model.eval()
        return len(self.model(batch.to(self.device)[0]))


class Ours:
    """The same network here."""

    def __init__(self, data: DetectionData, options: argparse.Namespace, device: torch.device, precision: Any) -> None:
        images = ImagesConfig(min_sizes=(options.size,), test_size=options.size)
        config = detector_config(options.regions)
        alone = Processes(rank=0, count=1, device=device, cores=1)
        model = build_detector(config, images, num_classes=len(data.classes))
        self.stepper = make_detector_stepper(model, TuneConfig(lr=LR), alone, precision=precision)

    def step(self, batch: DetectionBatch) -> float:
        """One step of SGD; its loss."""
        return float(self.stepper(batch)["total"])

    @torch.inference_mode()
    def detect(self, batch: DetectionBatch) -> int:
        """Detections of the images."""
        self.stepper.model.eval()
        return len(run(self.stepper.model, batch, self.stepper.processes.device, self.stepper.precision))


def batches_of(data: DetectionData, options: argparse.Namespace, workers: int) -> Any:
    images = ImagesConfig(min_sizes=(options.size,), test_size=options.size)
    dataset = TrainingSet(data, images, 0, masks=True)
    lying = np.array([record.width >= record.height for record in data.records])
    order = ShapeOrder(lying, options.batch, seed=0, end_step=10_000)
    return read_samples(make_loader(dataset, order, workers=workers, join=collate_samples))


def timed(function: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def table(title: str, seconds: dict[str, list[float]], images: int) -> None:
    print(f"\n{title}\n| variant | images/s, median (least to most) | ratio |\n| --- | --- | --- |")
    first = statistics.median(next(iter(seconds.values())))
    for name, taken in seconds.items():
        median = statistics.median(taken)
        rates = f"{images / median:.2f} ({images / max(taken):.2f} to {images / min(taken):.2f})"
        print(f"| {name} | {rates} | {first / median:.2f} |")


def speeds(options: argparse.Namespace) -> None:
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        path = write_scenes(Path(folder), 64, seed=0, width=500, height=375)
        data = read_coco(path)
        # random weights, which give the maximum number of proposals, and the same for all, so that detections are
        torch.manual_seed(0)
        plain = Plain(data, options, device)
        variants: dict[str, Any] = {"torchvision, float32": plain}
        for name, precision in (("ours, float32", "float32"), ("ours, bf16", "bf16")):
            variants[name] = Ours(data, options, device, precision)
            variants[name].stepper.model.load_state_dict(plain.model.state_dict())
        with contextlib.closing(batches_of(data, options, 0)) as batches:
            ready = [next(batches) for _ in range(2)]
        training: dict[str, list[float]] = {name: [] for name in variants}
        detecting: dict[str, list[float]] = {name: [] for name in variants}
        for at in range(options.times + 1):  # the first is left out
            for name, variant in variants.items():
                step = timed(lambda v=variant, b=ready[at % 2]: v.step(b), device)
                seconds = timed(lambda v=variant, b=ready[at % 2]: v.detect(b), device)
                if at:
                    training[name].append(step)
                    detecting[name].append(seconds)
        what = f"batch {options.batch}, shorter side {options.size} px, {options.regions} regions an image"
        table(f"Fine-tuning, {what}", training, options.batch)
        table(f"Detecting, {what}", detecting, options.batch)
        fed: dict[str, list[float]] = {name: [] for name in variants}
        for name, variant in variants.items():
            with contextlib.closing(batches_of(data, options, options.workers)) as batches:
                variant.step(next(batches))
                for _ in range(options.times):
                    fed[name].append(timed(lambda v=variant, b=batches: v.step(next(b)), device))
        table(f"Fine-tuning with loading, {options.workers} loader processes, {what}", fed, options.batch)


def evaluation(options: argparse.Namespace) -> None:
    """5,000 images with 7 objects and 30 detections each, of 80 classes."""
    generator = np.random.default_rng(0)
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in range(1, options.images + 1)]
    annotations, results = [], []
    for image in images:
        for _ in range(7):
            x, y = generator.uniform(0, 440, 2).tolist()
            w, h = generator.uniform(8, 200, 2).tolist()
            category = int(generator.integers(1, 81))
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image["id"], "category_id": category,
                 "bbox": [x, y, w, min(h, 480 - y)], "area": w * h, "iscrowd": 0}
            )  # fmt: skip
            for _ in range(4):
                shift = generator.normal(0, 0.15, 2) * (w, h)
                box = [x + float(shift[0]), y + float(shift[1]), w, h]
                score = float(generator.random())
                results.append({"image_id": image["id"], "category_id": category, "bbox": box, "score": score})
    categories = [{"id": i, "name": str(i)} for i in range(1, 81)]
    truth = {"images": images, "annotations": annotations, "categories": categories, "info": {}}
    print(f"\nCOCO's evaluation of boxes: {len(images)} images, {len(annotations)} objects, {len(results)} detections")
    print("| evaluator | seconds, median (least to most) | AP |\n| --- | --- | --- |")
    for name in ("pycocotools", "faster-coco-eval"):
        taken, value = [], 0.0
        for _ in range(options.times):
            with contextlib.redirect_stdout(io.StringIO()):
                try:
                    seconds, value = _evaluate(name, truth, results)
                except ModuleNotFoundError:
                    break
            taken.append(seconds)
        if not taken:
            print(f"| {name} | not installed | - |")
            continue
        print(f"| {name} | {statistics.median(taken):.1f} ({min(taken):.1f} to {max(taken):.1f}) | {value!r} |")


def _evaluate(name: str, truth: dict[str, Any], results: list[dict[str, Any]]) -> tuple[float, float]:
    if name == "pycocotools":
        coco, evaluator = (importlib.import_module(f"pycocotools.{part}") for part in ("coco", "cocoeval"))
        truth_of: Any = coco.COCO()
        truth_of.dataset = truth
        truth_of.createIndex()
        kind = evaluator.COCOeval
    else:
        faster = importlib.import_module("faster_coco_eval")
        truth_of, kind = faster.COCO(truth), faster.COCOeval_faster
    detections = truth_of.loadRes([dict(result) for result in results])
    start = time.perf_counter()
    evaluator = kind(truth_of, detections, "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return time.perf_counter() - start, float(evaluator.stats[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, default=400, help="shorter side, px")
    parser.add_argument("--regions", type=int, default=128, help="sampled an image by the box head")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--scores", action="store_true", help="measure the evaluation instead")
    parser.add_argument("--images", type=int, default=5000)
    options = parser.parse_args()
    device = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    print(
        f"{device}, torch {torch.__version__}, torchvision {torchvision.__version__}, {torch.get_num_threads()} threads"
    )
    if options.scores:
        evaluation(options)
    else:
        speeds(options)


if __name__ == "__main__":
    main()
