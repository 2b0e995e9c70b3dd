"""Read a detection data set of any layout, which is recognised by its path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from resim.datasets.cityscapes import read_cityscapes
from resim.datasets.coco import read_coco
from resim.datasets.foreign_formats import is_supervisely, recognise_file, recognise_folder
from resim.datasets.records import DetectionData
from resim.datasets.voc import read_voc
from resim.datasets.voc_layout import find_xml_folder, find_years
from resim.datasets.yolo import read_yolo
from resim.datasets.yolo_layout import has_class_names, is_yolo
from resim.errors import UserError
from resim.reading import special_kind

_WHAT_TO_NAME = "name a COCO JSON file, a YOLO data.yaml, or the folder of a data set"


def read_detection(
    path: str | Path,
    split: str | None = None,
    *,
    images: str | Path | Sequence[str | Path] | None = None,
    classes: Sequence[str] | None = None,
    strict: bool = False,
    check_images: bool = True,
    crowd_as_objects: bool = False,
) -> DetectionData:
    """A split of a data set in COCO's, VOC's, Cityscapes' or YOLO's layout.

    Args:
        path: a COCO JSON file; or a folder with COCO JSON files in it or in `annotations`, a VOC layout (`VOCdevkit`
            or a year), Cityscapes' `gtFine` and `leftImg8bit`, or YOLO's `data.yaml` (itself, or the folder).
        split: for a folder of COCO files such as `train2017` (None: the only file; a file itself has no split);
            `"2007 trainval+2012 trainval"` for VOC (None: `trainval`); `train` or `val` for Cityscapes (None: `train`);
            `train`, `val` or `test` for YOLO (None: `train`).
        images: for COCO, the folder or folders of the images if they are not next to the JSON file.
        classes: for VOC, the names of the classes if they are not VOC's twenty; for YOLO, if no file names them.
        strict: raise at the first kind of fault instead of repairing it.
        check_images: open every image file to compare its size with the annotation.
        crowd_as_objects: for COCO, read crowd regions (`iscrowd` 1) as objects.

    Raises:
        UserError: no layout is recognised, an option does not apply to the layout, or an error of the reader.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder: {_WHAT_TO_NAME}")
    if special_kind(path):
        raise UserError(f"{path}: is {special_kind(path)}, not a file: {_WHAT_TO_NAME}")
    try:
        return _read_layout(
            path, split, images, classes, strict=strict, check_images=check_images, crowd_as_objects=crowd_as_objects
        )
    except OSError as error:  # of one of the files in a folder
        raise UserError(f"{error.filename or path}: cannot be read ({error.strerror or error})") from None


def _read_layout(
    path: Path,
    split: str | None,
    images: str | Path | Sequence[str | Path] | None,
    classes: Sequence[str] | None,
    *,
    strict: bool,
    check_images: bool,
    crowd_as_objects: bool,
) -> DetectionData:
    is_voc = path.is_dir() and bool(find_years(path))
    is_cityscapes = path.is_dir() and (path / "gtFine").is_dir()
    has_yolo = not is_voc and not is_cityscapes and is_yolo(path) and not _is_coco(path, split)
    is_voc = is_voc or (path.is_dir() and not has_yolo and _is_xml(path, split))
    file = None if is_voc or is_cityscapes or has_yolo else _coco_file(path, split)
    if images is not None and file is None:
        raise UserError(f"{path}: --images-in applies only to COCO files: leave it out")
    if classes is not None and not is_voc and not has_yolo:
        raise UserError(
            f"{path}: --classes applies only to VOC and YOLO data sets, as other files name their classes: leave it out"
        )
    if crowd_as_objects and file is None:
        raise UserError(f"{path}: --crowd-as-objects applies only to COCO files, which have iscrowd: leave it out")
    if is_voc:
        return read_voc(path, split or "trainval", classes=classes, strict=strict, check_images=check_images)
    if is_cityscapes:
        return read_cityscapes(path, split or "train", strict=strict, check_images=check_images)
    if has_yolo:
        return read_yolo(path, split or "train", classes=classes, strict=strict)
    assert file is not None
    return read_coco(file, images, strict=strict, check_images=check_images, crowd_as_objects=crowd_as_objects)


def _is_xml(path: Path, split: str | None) -> bool:
    """Whether a folder has VOC's XML without lists, and no JSON, which takes precedence."""
    if _has_json(path) or (split and (path / split / "_annotations.coco.json").is_file()):
        return False
    return find_xml_folder(path / split if split else path) is not None or find_xml_folder(path) is not None


def is_data_set(path: Path) -> bool:
    """Whether `path` exists and `read_detection` may be able to read it."""
    if path.is_file():
        return path.suffix.lower() == ".json" or is_yolo(path)
    if not path.is_dir():
        return False
    is_voc = bool(find_years(path)) or find_xml_folder(path) is not None
    return _has_json(path) or is_voc or (path / "gtFine").is_dir() or has_class_names(path)


def _has_json(path: Path) -> bool:
    return any(next(folder.glob("*.json"), None) for folder in (path, path / "annotations"))


def _is_coco(path: Path, split: str | None) -> bool:
    """Whether a folder that may be YOLO's has COCO files: COCO is often stored together with labels for YOLO."""
    if path.is_file():
        return False
    if any(name.suffix in (".yaml", ".yml", ".data") for name in path.iterdir()):
        return split is not None and any((path / "annotations").glob(f"*{split}.json"))
    return any(file.name != "notes.json" for folder in (path, path / "annotations") for file in folder.glob("*.json"))


def _coco_file(path: Path, split: str | None) -> Path:
    """The COCO JSON file at a path, or that of a split in a folder."""
    if path.is_file():
        fault = recognise_file(path)
        if fault:
            raise UserError(f"{path}: {fault}")
        if path.suffix.lower() != ".json":
            raise UserError(f"{path}: not a .json file: {_WHAT_TO_NAME}")
        if split is not None:
            raise UserError(f"{path}: a single file has no split {split!r}: leave --split out, or name the folder")
        return path
    folders = [folder for folder in (path / "annotations", path) if folder.is_dir()]
    if split is None:
        files = sorted(file for folder in folders for file in folder.glob("*.json"))
        if len(files) == 1 and not is_supervisely(path):
            return files[0]
        if files:
            message = (
                recognise_folder(path)
                or f"choose one of {files[0].name}, ...: name the split with --split, or the file itself"
            )
            raise UserError(f"{path}: {message if len(files) == 1 else f'{len(files)} JSON files: {message}'}")
    else:
        names = [f"instances_{split}.json", f"{split}.json", f"objects_{split}.json", f"person_keypoints_{split}.json"]
        usual = [folder / name for folder in folders for name in names]
        usual += [path / split / name for name in ("_annotations.coco.json", "annotations.json", "labels.json")]
        for file in usual:
            if file.is_file():
                return file
    message = recognise_folder(path)
    if message:
        missing = f"no split {split!r}; " if split else ""
        raise UserError(f"{path}: {missing}{message}")
    coco = f"instances_{split or 'SPLIT'}.json, there or in annotations"
    raise UserError(
        f"{path}: no detection data set: name a folder of COCO ({coco}), VOC (ImageSets/Main there, in VOC2007, ... or "
        "in VOCdevkit, or XML files), Cityscapes (gtFine and leftImg8bit) or YOLO (data.yaml, or images and labels)"
    )
