"""From records to batches: what is learnt from, flips by hand, and every image once an epoch."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detection_data import H, W, corners, polygons, thing, write_cityscapes, write_coco, write_voc, xml_object
from resim.datasets.cityscapes import read_cityscapes
from resim.datasets.coco import read_coco
from resim.datasets.records import DetectionData
from resim.datasets.voc import read_voc
from resim.detection.samples import (
    DetectionBatch,
    Sample,
    ShapeOrder,
    TestSet,
    TrainingSet,
    collate_samples,
    keypoint_swaps,
    objects_to_learn,
    read_samples,
)
from resim.errors import UserError
from resim.views.loader import make_loader
from tiny_detectors import noise, tiny_images

PERSON = {"id": 1, "name": "person", "keypoints": ["nose", "left_eye", "right_eye"]}


def one(data: DetectionData, flip: float = 0.0, **more: Any) -> Sample:
    """The first image's sample."""
    images = tiny_images(flip=flip, **more.pop("images", {}))
    return TrainingSet(data, images, 0, **more)[(0, 0)]


# -- flips


def test_boxes_and_masks_are_flipped_with_the_image(tmp_path: Path) -> None:
    triangle = [10, 10, 40, 10, 10, 40]  # is not its own mirror
    data = read_coco(write_coco(tmp_path, [thing(1, 1, 7, (10, 10, 40, 40), segmentation=[triangle])], num_images=1))
    noise(tmp_path / "images" / "1.png", seed=1)
    plain, flipped = one(data, masks=True), one(data, flip=1.0, masks=True)
    assert plain.image.shape == (3, H, W)
    assert plain.image.dtype == torch.uint8
    assert torch.equal(flipped.image, plain.image.flip(2))
    assert flipped.image.is_contiguous()
    assert plain.target["boxes"].tolist() == [[10, 10, 40, 40]]
    assert flipped.target["boxes"].tolist() == [[W - 40, 10, W - 10, 40]]
    mask = plain.target["masks"][0]
    assert (mask[15, 12], mask[38, 38]) == (1, 0)
    assert torch.equal(flipped.target["masks"][0], mask.flip(1))
    assert flipped.target["masks"].dtype == torch.uint8
    assert plain.target["labels"].tolist() == flipped.target["labels"].tolist() == [2]  # ids 3, 7: labels 1, 2


def test_keypoints_are_flipped_and_left_becomes_right(tmp_path: Path) -> None:
    points = [30, 20, 2, 40, 15, 1, 0, 0, 0]  # the right eye is not annotated
    data = read_coco(
        write_coco(tmp_path, [thing(1, 1, 1, (10, 10, 60, 70), keypoints=points)], num_images=1, categories=[PERSON])
    )
    # COCO's x counts pixels: the middle of pixel 30 is at 30.5, and in the mirror at 69.5, the middle of pixel 69
    assert one(data, keypoints=True).target["keypoints"].tolist() == [[[30.5, 20.5, 2], [40.5, 15.5, 1], [0.5, 0.5, 0]]]
    result = one(data, flip=1.0, keypoints=True).target["keypoints"].tolist()
    assert result == [[[69.5, 20.5, 2], [0.5, 0.5, 0], [59.5, 15.5, 1]]]


@pytest.mark.parametrize(
    ("names", "swaps"),
    [
        (["nose", "left_eye", "right_eye"], [0, 2, 1]),
        (["right_hip", "tail", "left_hip"], [2, 1, 0]),
        (["left_ear", "nose"], [0, 1]),  # no partner
        (["", "left", "", "right"], [0, 3, 2, 1]),  # points without a name are none of each other's
        ([], []),
    ],
)
def test_partners_in_the_mirror(names: list[str], swaps: list[int]) -> None:
    assert keypoint_swaps(names) == swaps


def test_half_of_the_images_are_flipped_and_sizes_are_drawn_by_epoch_and_image(tmp_path: Path) -> None:
    data = read_coco(write_coco(tmp_path, [thing(1, 1, 7, (10, 10, 40, 40))], num_images=1))
    dataset = TrainingSet(data, tiny_images(flip=0.5), 3)
    samples = [dataset[(epoch, 0)] for epoch in range(200)]
    flips = [sample.target["boxes"][0, 0] == W - 40 for sample in samples]
    assert 70 < sum(flips) < 130
    assert Counter(sample.size for sample in samples).keys() == {64, 80}
    assert len({sample.seed for sample in samples}) == 200
    again, other = dataset[(7, 0)], TrainingSet(data, tiny_images(), 4)[(7, 0)]
    assert (again.size, again.seed) == (samples[7].size, samples[7].seed)
    assert other.seed != again.seed


# -- what is learnt


def test_crowd_regions_and_empty_boxes_are_left_out_and_boxes_end_at_the_edge(tmp_path: Path) -> None:
    crowd = {"size": [H, W], "counts": [0, H * W]}
    data = read_coco(
        write_coco(
            tmp_path,
            [
                thing(1, 1, 7, (0, 0, W, H), iscrowd=1, segmentation=crowd),
                thing(2, 1, 7, (90, 70, W + 1, H + 1)),  # sticks out
                thing(3, 1, 3, (-1, -1, 10, 10)),
                thing(4, 1, 3, (W, 5, W + 1, 20)),  # nothing of it is in the image
                thing(5, 1, 3, (W - 1e-6, 5, W + 1, 20)),  # and of this nothing that numbers in single precision keep
            ],
            num_images=1,
        )
    )
    for flip in (0.0, 1.0):
        sample = one(data, flip=flip)
        boxes = [[90, 70, W, H], [0, 0, 10, 10]]
        if flip:
            boxes = [[W - x1, y0, W - x0, y1] for x0, y0, x1, y1 in boxes]
        assert sample.target["boxes"].tolist() == boxes
        assert sample.target["labels"].tolist() == [2, 1]
        assert sample.target["boxes"].dtype == torch.float32


def test_difficult_objects_are_learnt_as_asked(tmp_path: Path) -> None:
    objects = [xml_object("dog", (1, 1, 20, 20)), xml_object("cat", (30, 30, 60, 60), difficult=1)]
    data = read_voc(write_voc(tmp_path, "2007", {"trainval": ["a"]}, {"a": objects}), "2007 trainval")
    assert len(one(data).target["labels"]) == 2
    kept = one(data, images={"difficult": False}).target
    assert kept["boxes"].tolist() == [[0, 0, 20, 20]]


def test_where_masks_are_learnt_objects_without_one_are_left_out(tmp_path: Path) -> None:
    things = [thing(1, 1, 7, (10, 10, 40, 40)), thing(2, 1, 7, (50, 10, 60, 40), segmentation=[])]
    data = read_coco(write_coco(tmp_path, things, num_images=1))
    assert len(one(data).target["boxes"]) == 2
    assert "masks" not in one(data).target
    target = one(data, masks=True).target
    assert target["boxes"].tolist() == [[10, 10, 40, 40]]
    assert target["masks"].shape == (1, H, W)
    (record, _) = (*data.records, None)
    assert objects_to_learn(record, difficult=True, masks=True).tolist() == [True, False]


def test_cityscapes_objects_have_boxes_and_masks(tmp_path: Path) -> None:
    scene = polygons([("car", corners(10, 20, 29, 39)), ("road", corners(0, 60, 99, 79))])
    root = write_cityscapes(tmp_path, {"ulm_000000_000019": scene}, split="train")
    target = one(read_cityscapes(root, "train"), masks=True).target
    assert target["boxes"].tolist() == [[10, 20, 30, 40]]
    assert int(target["masks"].sum()) == 20 * 20


# -- files that cannot be decoded


def broken(tmp_path: Path) -> DetectionData:
    data = read_coco(write_coco(tmp_path, [thing(1, 1, 7, (10, 10, 40, 40))], num_images=1))
    (tmp_path / "images" / "1.png").write_bytes(b"no picture")
    return data


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_cannot_be_decoded_is_named(tmp_path: Path, workers: int) -> None:
    data = broken(tmp_path)
    order = ShapeOrder(np.array([True]), 1, seed=0, end_step=1)
    for dataset, keys in ((TrainingSet(data, tiny_images(), 0), order), (TestSet(data.records), [[0]])):
        loader = make_loader(dataset, keys, workers=workers, join=collate_samples)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"1.png: cannot be decoded \(.*\): mend it, or take it out of the data"):
            next(read_samples(loader))


def test_a_file_of_another_size_than_its_annotation_says(tmp_path: Path) -> None:
    data = read_coco(write_coco(tmp_path, [thing(1, 1, 7, (10, 10, 40, 40))], num_images=1))
    noise(tmp_path / "images" / "1.png", seed=0, width=64, height=48)
    assert one(data).fault == f"is 64 x 48 px, its annotation says {W} x {H}"


def test_a_batch_in_page_locked_memory_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())  # needs a GPU
    sound = read_coco(write_coco(tmp_path / "sound", [thing(1, 1, 7, (10, 10, 40, 40))], num_images=1))
    batch = DetectionBatch([one(sound), one(broken(tmp_path / "broken"))])
    pinned = batch.pin_memory()
    assert len(pinned) == len(batch) == 2
    for ours, theirs in zip(pinned.samples, batch.samples, strict=True):
        assert torch.equal(ours.image, theirs.image)
        assert ours.target.keys() == theirs.target.keys()
        assert all(torch.equal(ours.target[name], value) for name, value in theirs.target.items())
        for name in ("index", "size", "seed", "fault"):
            assert getattr(ours, name) == getattr(theirs, name)
    assert pinned.samples[1].fault


def test_a_batch_on_the_device_has_values_from_0_to_1() -> None:
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1)
    ((image,), (target,)) = DetectionBatch([Sample(pixels, {"boxes": torch.ones(1, 4)}, 0, 0, 0)]).to(
        torch.device("cpu")
    )
    assert image.flatten().tolist() == pytest.approx([0, 0.2, 1])
    assert target["boxes"].tolist() == [[1, 1, 1, 1]]


# -- the order


LYING = np.array([True] * 7 + [False] * 4)


def batches(**more: Any) -> Iterator[list[tuple[int, int]]]:
    settings: dict[str, Any] = {"seed": 3, "end_step": 20} | more
    return iter(ShapeOrder(LYING, settings.pop("batch", 4), **settings))


def test_shapes_are_never_mixed_and_every_image_comes_once_an_epoch() -> None:
    order = list(batches())
    assert len(order) == 20
    for batch in order:
        assert len(batch) == 4
        assert len({bool(LYING[index]) for _, index in batch}) == 1
    keys = [key for batch in order for key in batch]
    assert len(set(keys)) == len(keys) == 80
    last = max(epoch for epoch, _ in keys)
    # up to those that wait for others of their shape: at most 3 of each
    missing = {(e, i) for e in range(last) for i in range(len(LYING))} - set(keys)
    assert len(missing) <= 6
    assert all(epoch >= last - 1 for epoch, _ in missing)


def test_processes_share_the_batches_of_one() -> None:
    whole = list(batches())
    parts = [list(batches(rank=rank, processes=2)) for rank in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


@pytest.mark.parametrize("start", [0, 1, 9, 20])
def test_to_begin_at_a_step_is_to_go_on(start: int) -> None:
    assert list(batches(start_step=start)) == list(batches())[start:]
    assert len(ShapeOrder(LYING, 4, seed=3, start_step=start, end_step=20)) == 20 - start


def test_another_seed_is_another_order() -> None:
    assert list(batches(seed=4)) != list(batches(seed=3))


def test_fewer_images_than_a_batch_are_seen_in_several_epochs() -> None:
    few = list(ShapeOrder(np.array([True, False]), 3, seed=0, end_step=4))
    assert [len(batch) for batch in few] == [3] * 4
    assert all(len({index for _, index in batch}) == 1 for batch in few)


def test_the_order_of_a_share_is_its_own(tmp_path: Path) -> None:
    data = read_coco(write_coco(tmp_path, [thing(n, n, 7, (10, 10, 40, 40)) for n in range(1, 4)], num_images=3))
    share = dataclasses.replace(data, records=data.records[1:])
    assert TrainingSet(share, tiny_images(), 0)[(0, 0)].index == 0
    assert len(TrainingSet(share, tiny_images(), 0)) == 2
