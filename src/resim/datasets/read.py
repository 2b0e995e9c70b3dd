"""A detection data set by its path, whose layout is recognised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from resim.datasets.cityscapes import read_cityscapes
from resim.datasets.coco import read_coco
from resim.datasets.recognise import is_supervisely, recognise_file, recognise_folder
from resim.datasets.records import DetectionData
from resim.datasets.voc import read_voc, xml_folder, years
from resim.datasets.yolo import read_yolo
from resim.datasets.yolo_files import is_yolo, names_its_classes
from resim.errors import UserError


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
        split: `train2017` and the like for a folder of COCO files (not needed where there is one file only; a file
            has none), `"2007 trainval+2012 trainval"` for VOC (None: `trainval`), `train` or `val` for Cityscapes
            (None: `train`), `train`, `val` or `test` for YOLO (None: `train`).
        images: for COCO, the folder or folders of the images if they are not beside the JSON file.
        classes: for VOC, the names of the classes if they are not VOC's twenty; for YOLO, where no file has them.
        strict: raise at the first kind of fault instead of repairing.
        check_images: open every image file to compare its size with the annotation.
        crowd_as_objects: for COCO, take crowd regions (`iscrowd` 1) as objects.

    Raises:
        UserError: no layout is recognised, an option does not go with the layout, or what the readers raise.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder")
    is_voc = path.is_dir() and bool(years(path))
    is_cityscapes = path.is_dir() and (path / "gtFine").is_dir()
    has_yolo = not is_voc and not is_cityscapes and is_yolo(path) and not _is_coco(path, split)
    is_voc = is_voc or (path.is_dir() and not has_yolo and _is_xml(path, split))
    file = None if is_voc or is_cityscapes or has_yolo else _coco_file(path, split)
    if images is not None and file is None:
        raise UserError(f"{path}: a folder of images is named, which goes with COCO files only")
    if classes is not None and not is_voc and not has_yolo:
        raise UserError(
            f"{path}: classes are named, which goes with VOC's and YOLO's layouts; other files say their own"
        )
    if crowd_as_objects and file is None:
        raise UserError(f"{path}: --crowd-as-objects goes with COCO files only, which have iscrowd: leave it out")
    if is_voc:
        return read_voc(path, split or "trainval", classes=classes, strict=strict, check_images=check_images)
    if is_cityscapes:
        return read_cityscapes(path, split or "train", strict=strict, check_images=check_images)
    if has_yolo:
        return read_yolo(path, split or "train", classes=classes, strict=strict)
    assert file is not None
    return read_coco(file, images, strict=strict, check_images=check_images, crowd_as_objects=crowd_as_objects)


def _is_xml(path: Path, split: str | None) -> bool:
    """Whether a folder holds VOC's XML without lists, and no JSON that would go before it."""
    if _has_json(path) or (split and (path / split / "_annotations.coco.json").is_file()):
        return False
    return xml_folder(path / split if split else path) is not None or xml_folder(path) is not None


def is_data_set(path: Path) -> bool:
    """Whether there is anything at `path` that `read_detection` might read."""
    if path.is_file():
        return path.suffix.lower() == ".json" or is_yolo(path)
    if not path.is_dir():
        return False
    is_voc = bool(years(path)) or xml_folder(path) is not None
    return _has_json(path) or is_voc or (path / "gtFine").is_dir() or names_its_classes(path)


def _has_json(path: Path) -> bool:
    return any(next(folder.glob("*.json"), None) for folder in (path, path / "annotations"))


def _is_coco(path: Path, split: str | None) -> bool:
    """Whether a folder that might be YOLO's has COCO files, as COCO itself has with YOLO's labels beside it."""
    if path.is_file():
        return False
    if any(name.suffix in (".yaml", ".yml", ".data") for name in path.iterdir()):
        return split is not None and any((path / "annotations").glob(f"*{split}.json"))
    return any(file.name != "notes.json" for folder in (path, path / "annotations") for file in folder.glob("*.json"))


def _coco_file(path: Path, split: str | None) -> Path:
    """The JSON file that is meant."""
    if path.is_file():
        what = recognise_file(path)
        if what:
            raise UserError(f"{path}: {what}")
        if path.suffix.lower() != ".json":
            raise UserError(f"{path}: not a .json file; a data set is a COCO JSON file, YOLO's data.yaml, or a folder")
        if split is not None:
            raise UserError(f"{path}: is one file, which has no split {split!r}: leave it out, or name another file")
        return path
    folders = [folder for folder in (path / "annotations", path) if folder.is_dir()]
    if split is None:
        found = sorted(file for folder in folders for file in folder.glob("*.json"))
        if len(found) == 1 and not is_supervisely(path):
            return found[0]
        if found:
            told = recognise_folder(path) or f"{found[0].name}, ...: name a split, or one of them"
            raise UserError(f"{path}: {told if len(found) == 1 else f'{len(found)} JSON files: {told}'}")
    else:
        names = [f"instances_{split}.json", f"{split}.json", f"objects_{split}.json", f"person_keypoints_{split}.json"]
        usual = [folder / name for folder in folders for name in names]
        usual += [path / split / name for name in ("_annotations.coco.json", "annotations.json", "labels.json")]
        for file in usual:
            if file.is_file():
                return file
    told = recognise_folder(path)
    if told:
        wanted = f"no split {split!r}; " if split else ""
        raise UserError(f"{path}: {wanted}{told}")
    coco = f"instances_{split or 'SPLIT'}.json there or in annotations"
    raise UserError(
        f"{path}: no detection data set; looked for COCO ({coco}), VOC (ImageSets/Main there, in VOC2007, ... or in "
        "VOCdevkit, or XML files), Cityscapes (gtFine and leftImg8bit) and YOLO (data.yaml, or images and labels)"
    )
