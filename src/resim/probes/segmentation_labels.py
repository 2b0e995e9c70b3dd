"""Reading images with label maps: COCO masks, VOC's SegmentationClass, or folders of images and of label PNGs.

Files are listed here and decoded by `label_maps.load_label_maps`. Values are those of the files; 0 is the background of
COCO and of VOC.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from resim.counts import counted
from resim.datasets.coco import read_coco
from resim.errors import UserError
from resim.probes.class_names import TEST_PARTS, TRAIN_PARTS, find_folder
from resim.probes.label_files import label_files, no_label_maps, pair_files, read_names
from resim.probes.labelled_images import LabelledImages, omission_note
from resim.probes.voc_masks import read_voc_masks, voc_years
from resim.views.folder import find_images

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "JPEGImages")
LABEL_FOLDERS = (
    "segmentation",
    "labels",
    "label",
    "masks",
    "mask",
    "annotations",
    "SegmentationClass",
    "gt",
    "groundtruth",
    "ground_truth",
)


def read_labelled_sets(
    data: str | Path,
    test: str | Path | None = None,
    *,
    labels: str | Path | None = None,
    test_labels: str | Path | None = None,
    split: tuple[str, str] = ("train", "val"),
    test_share: float = 0.2,
    seed: int = 0,
) -> tuple[LabelledImages, LabelledImages]:
    """Read labelled training images and test images.

    Without `test`, the parts of a folder are read (`train` and `val`, `validation` or `test`; of a VOC folder the lists
    that `split` names); if there are none, `test_share` of the images is held out at random.

    Args:
        data: a COCO JSON file; a VOC folder; or a folder of images, with label maps in `labels` or in a folder with a
            common name next to `images`.
        test: the same for the test images.
        labels: label maps of the images of `data`: a folder, or a COCO JSON file.
        test_labels: label maps of the images of `test`.
        split: lists in `ImageSets/Segmentation` of a VOC folder; several years are written `"2012 train+2007 train"`.
        test_share: fraction of the images.
        seed: of the held-out images.

    Raises:
        UserError: nothing can be read, or the labels do not match the images.
    """
    if test is None and test_labels is not None:
        raise UserError(f"--test-labels {test_labels}: name the images of these labels with --test")
    if test is not None:
        return _disjoint(read_labelled(data, labels, split[0]), read_labelled(test, test_labels, split[1]))
    parts = _split_folders(Path(data).expanduser(), None if labels is None else Path(labels).expanduser(), split)
    if parts is not None:
        return _disjoint(*parts)
    images = read_labelled(data, labels, split[0])
    order = np.random.default_rng([10, seed]).permutation(len(images))
    num_held_out = max(1, round(test_share * len(images)))
    if num_held_out >= len(images):
        count = counted(len(images), "labelled image")
        raise UserError(f"{data}: {count} cannot be split into two sets: name test images with --test")
    train, held_out = images.take(np.sort(order[num_held_out:])), images.take(np.sort(order[:num_held_out]))
    return train, replace(held_out, notes=())


def _disjoint(train: LabelledImages, test: LabelledImages) -> tuple[LabelledImages, LabelledImages]:
    shared = set(map(_real, train.images)) & set(map(_real, test.images))
    if shared:
        raise UserError(
            f"{test.source}: {len(shared)} of its images are training images too, such as {min(shared)}: remove them "
            "from one of the sets"
        )
    return train, test


def read_labelled(data: str | Path, labels: str | Path | None = None, part: str = "train") -> LabelledImages:
    """Read the labelled images of one source.

    Args:
        data: as in `read_labelled_sets`.
        labels: as in `read_labelled_sets`.
        part: a list of a VOC folder.

    Raises:
        UserError: nothing can be read, or the labels do not match the images.
    """
    path = Path(data).expanduser()
    labels_path = None if labels is None else Path(labels).expanduser()
    if not path.exists():
        raise UserError(f"{data}: there is no such folder or file")
    if labels_path is not None and not labels_path.exists():
        raise UserError(f"--labels {labels}: there is no such folder or file")
    if path.suffix.lower() == ".json":
        if labels_path is not None:
            raise UserError(f"--labels {labels}: {path.name} contains the labels of its images: leave --labels out")
        return _read_coco(path, None)
    if labels_path is not None and labels_path.suffix.lower() == ".json":
        return _read_coco(labels_path, path if path.is_dir() else None)
    if voc_years(path):
        return read_voc_masks(path, part, labels_path)
    if labels_path is None:
        pair = pair_of_folders(path)
        if pair is None:
            lossy = [folder for name in LABEL_FOLDERS if (folder := find_folder(path, (name,))) is not None]
            if lossy and find_folder(path, IMAGE_FOLDERS) is not None:
                raise UserError(no_label_maps(lossy[0]))
            _refuse_mixed(path)
            raise UserError(
                f"{data}: no label maps: name a COCO .json, a VOC folder (SegmentationClass), a folder that contains "
                f"images and one of {', '.join(LABEL_FOLDERS)}, or the label maps with --labels"
            )
        return _read_pair(*pair, source=str(data))
    return _read_pair(path, labels_path, source=str(data))


def _refuse_mixed(folder: Path) -> None:
    """Raise a UserError that says what to do if label maps lie next to their images, as Roboflow writes them."""
    train = find_folder(folder, TRAIN_PARTS) or folder
    for part in (folder, train):
        names = {file.name for file in part.iterdir()} if part.is_dir() else set[str]()
        mask = next((name for name in sorted(names) if name.endswith("_mask.png")), None)
        if mask is not None and {mask.replace("_mask.png", ending) for ending in (".jpg", ".jpeg", ".png")} & names:
            raise UserError(
                f"{part}: contains label maps next to their images, such as {mask}: move both into folders of their "
                f"own: cd {part} && mkdir masks images && mv *_mask.png masks && mv *.jpg images"
            )


def has_label_maps(path: Path) -> bool:
    """Whether `read_labelled_sets` can read `path` without `labels`."""
    path = path.expanduser()
    if path.suffix.lower() == ".json":
        return path.is_file()
    if not path.is_dir():
        return False
    train = find_folder(path, TRAIN_PARTS)
    parts = [path] if train is None else [path, train]
    return bool(voc_years(path)) or any(pair_of_folders(part) is not None for part in parts)


def pair_of_folders(root: Path) -> tuple[Path, Path] | None:
    """The folder of images and the folder of label maps in `root`, if both exist under a common name.

    Raises:
        UserError: several folders could contain the label maps.
    """
    images = find_folder(root, IMAGE_FOLDERS)
    if images is None:
        return None
    there = [find_folder(root, (name,)) for name in LABEL_FOLDERS]
    named = [folder for folder in dict.fromkeys(there) if folder is not None]
    labels = [folder for folder in named if label_files(folder)]
    if len(labels) > 1:
        names = " and ".join(folder.name for folder in labels)
        raise UserError(f"{root}: {names} contain PNGs: name one with --labels")
    return (images, labels[0]) if labels else None


def _split_folders(
    root: Path, labels: Path | None, split: tuple[str, str]
) -> tuple[LabelledImages, LabelledImages] | None:
    """The training and test parts of a folder; None if it is not split."""
    if not root.is_dir():
        return None
    years = voc_years(root)
    if years:
        if not any(list((folder / "ImageSets" / "Segmentation").glob("*.txt")) for folder in years.values()):
            return None
        return read_voc_masks(root, split[0], labels), read_voc_masks(root, split[1], labels)
    for first in TRAIN_PARTS:
        for second in TEST_PARTS:
            pairs = [_pair_of_part(root, labels, name) for name in (first, second)]
            if pairs[0] is not None and pairs[1] is not None:
                train, test = (_read_pair(*pair, source=str(pair[0])) for pair in pairs if pair is not None)
                return train, test
    return None


def _pair_of_part(root: Path, labels: Path | None, name: str) -> tuple[Path, Path] | None:
    """`root/name/images` and its label maps, or `root/images/name` and `root/labels/name`."""
    if labels is not None:
        images, own = find_folder(root, (name,)), find_folder(labels, (name,))
        return (images, own) if images is not None and own is not None else None
    part = find_folder(root, (name,))
    if part is not None:
        return pair_of_folders(part)
    pair = pair_of_folders(root)
    if pair is None:
        return None
    images, own = (find_folder(folder, (name,)) for folder in pair)
    return None if images is None or own is None else (images, own)


def _read_pair(images: Path, labels: Path, *, source: str) -> LabelledImages:
    if not labels.is_dir():
        raise UserError(f"--labels {labels}: is not a folder of label maps or a COCO .json; name one of them")
    prefix = str(labels.resolve()) + "/"
    are_separate = images.resolve() != labels.resolve()
    paths = [path for path in find_images(images) if not (are_separate and _real(path).startswith(prefix))]
    root = images if images.is_dir() else images.parent
    if not paths:
        raise UserError(f"{images}: contains no images except the label maps of {labels}")
    pairs = pair_files(paths, root, labels)
    names, colours = read_names((labels, labels.parent, root.parent))
    notes = omission_note(pairs.without_label, "image without a label map", "images without a label map")
    notes += omission_note(pairs.without_image, "label map without an image", "label maps without an image")
    return LabelledImages(
        source=source, kind="label maps", images=pairs.images, labels=pairs.labels, names=names, colours=colours,
        notes=notes,
    )  # fmt: skip


def _read_coco(path: Path, images: Path | None) -> LabelledImages:
    data = read_coco(path, images)
    if not data.has_masks:
        raise UserError(f"{path}: has boxes, but no masks: segmentation and retrieval need a mask for each object")
    boxes = sum(int((~record.has_mask & ~record.crowd).sum()) for record in data.records)
    crowds = sum(int(record.crowd.sum()) for record in data.records)
    notes = list(data.repairs.lines())
    if boxes:
        notes.append(
            f"{path}: no mask for {counted(boxes, 'object')}: pixels of their boxes that no mask covers are void"
        )
    if crowds:
        notes.append(f"{path}: {counted(crowds, 'crowd region')}: their pixels that no object covers are void")
    return LabelledImages(
        source=str(path),
        kind="COCO masks",
        images=tuple(record.image for record in data.records),
        labels=data.records,
        names={0: "background"} | dict(enumerate(data.classes, start=1)),
        notes=tuple(notes),
    )


def _real(path: str) -> str:
    return str(Path(path).resolve())
