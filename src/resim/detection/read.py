"""A detection data set by its path: which of the layouts it has is seen, not asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from resim.detection.cityscapes import read_cityscapes
from resim.detection.coco import read_coco
from resim.detection.records import DetectionData
from resim.detection.voc import read_voc, years
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
    """A split of a data set in COCO's, VOC's or Cityscapes' layout.

    Args:
        path: a COCO JSON file; or a folder with COCO JSON files in it or in `annotations`, a VOC layout (`VOCdevkit`
            or a year), or Cityscapes' `gtFine` and `leftImg8bit`.
        split: `train2017` and the like for a folder of COCO files (not needed where there is one file only; a file
            has none), `"2007 trainval+2012 trainval"` for VOC (None: `trainval`), `train` or `val` for Cityscapes
            (None: `train`).
        images: for COCO, the folder or folders of the images if they are not beside the JSON file.
        classes: for VOC, the names of the classes if they are not VOC's twenty.
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
    file = None if is_voc or is_cityscapes else _coco_file(path, split)
    if images is not None and file is None:
        raise UserError(f"{path}: a folder of images is named, which goes with COCO files only")
    if classes is not None and not is_voc:
        raise UserError(f"{path}: classes are named, which goes with VOC's layout only; other files say their own")
    if crowd_as_objects and file is None:
        raise UserError(f"{path}: --crowd-as-objects goes with COCO files only, which have iscrowd: leave it out")
    if is_voc:
        return read_voc(path, split or "trainval", classes=classes, strict=strict, check_images=check_images)
    if is_cityscapes:
        return read_cityscapes(path, split or "train", strict=strict, check_images=check_images)
    assert file is not None
    return read_coco(file, images, strict=strict, check_images=check_images, crowd_as_objects=crowd_as_objects)


def is_data_set(path: Path) -> bool:
    """Whether there is anything at `path` that `read_detection` might read."""
    if path.is_file():
        return path.suffix.lower() == ".json"
    if not path.is_dir():
        return False
    has_json = any(next(folder.glob("*.json"), None) for folder in (path, path / "annotations"))
    return has_json or bool(years(path)) or (path / "gtFine").is_dir()


def _coco_file(path: Path, split: str | None) -> Path:
    """The JSON file that is meant."""
    if path.is_file():
        if path.suffix.lower() != ".json":
            raise UserError(f"{path}: not a .json file; a data set is a COCO JSON file, or a folder")
        if split is not None:
            raise UserError(f"{path}: is one file, which has no split {split!r}: leave it out, or name another file")
        return path
    folders = [folder for folder in (path / "annotations", path) if folder.is_dir()]
    if split is None:
        found = sorted(file for folder in folders for file in folder.glob("*.json"))
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"{path}: {len(found)} JSON files ({found[0].name}, ...): name a split, or one of them")
    else:
        names = [f"instances_{split}.json", f"{split}.json", f"objects_{split}.json", f"person_keypoints_{split}.json"]
        usual = [folder / name for folder in folders for name in names]
        usual += [path / split / "_annotations.coco.json", path / split / "annotations.json"]
        for file in usual:
            if file.is_file():
                return file
    coco = f"instances_{split or 'SPLIT'}.json there or in annotations"
    raise UserError(
        f"{path}: no detection data set; looked for COCO ({coco}), VOC (ImageSets/Main there, in VOC2007, ... or in "
        "VOCdevkit) and Cityscapes (gtFine and leftImg8bit)"
    )
