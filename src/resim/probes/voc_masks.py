"""Label maps in VOC's layout: SegmentationClass, and the lists of ImageSets/Segmentation."""

from __future__ import annotations

from pathlib import Path

from resim.datasets.voc import CLASSES
from resim.errors import UserError
from resim.probes.label_files import label_files, read_lines, read_names, voc_colours
from resim.probes.labelled_images import LabelledImages, omission_note
from resim.views.folder import find_images


def voc_years(root: Path) -> dict[str, Path]:
    """The folders of years with VOC masks, at or below `root`, by year."""
    if not root.is_dir():
        return {}
    devkit = root / "VOCdevkit" if (root / "VOCdevkit").is_dir() else root
    folders = [root, *sorted(devkit.glob("VOC*"))]
    years = [folder for folder in folders if (folder / "JPEGImages").is_dir() and _voc_masks(folder) is not None]
    return {folder.name.removeprefix("VOC"): folder for folder in years}


def _voc_masks(folder: Path) -> Path | None:
    return next(
        (folder / name for name in ("SegmentationClass", "SegmentationClassAug") if (folder / name).is_dir()), None
    )


def read_voc_masks(root: Path, part: str, labels: Path | None) -> LabelledImages:
    """Read the images of a list and their masks.

    Args:
        root: `VOCdevkit`, its parent, or the folder of a year.
        part: the list, `"train"`; of several years `"2012 train+2007 train"`. Without lists, all images are read.
        labels: folder of the masks; None: `SegmentationClass`.

    Raises:
        UserError: the year or the list does not exist, or none of its images exists with its mask.
    """
    images: dict[str, str] = {}
    missing: list[str] = []
    names, colours = {}, {}
    for list_name in part.split("+"):
        folder, listed = _voc_list(root, list_name.strip(), part)
        masks = labels or _voc_masks(folder)
        assert masks is not None
        names, colours = read_names((masks, folder, root))
        by_name = {Path(path).stem: path for path in label_files(masks)}
        photographs = {Path(path).stem: path for path in find_images(folder / "JPEGImages")}
        for line in listed if listed is not None else sorted(by_name):
            first = line.split()[0]
            candidates = (line, first, Path(first).stem if "/" in first or "." in first else first)
            name = next((candidate for candidate in candidates if candidate in by_name), None)
            if name is None or name not in photographs:
                missing.append(line)
            else:
                images[photographs[name]] = by_name[name]
    source = f"{root} ({part})"
    if not images:
        raise UserError(f"{source}: none of {len(missing)} listed images exists with its mask ({missing[0]})")
    return LabelledImages(
        source=source,
        kind="VOC masks",
        images=tuple(images),
        labels=tuple(images.values()),
        names=names or dict(enumerate(("background", *CLASSES))),
        colours=colours or voc_colours(),
        notes=omission_note(missing, "listed image without picture or mask", "listed images without picture or mask"),
    )


def _voc_list(root: Path, list_name: str, split: str) -> tuple[Path, list[str] | None]:
    """The folder of a year, and the lines of one of its lists; None if it has no lists.

    Args:
        root: as in `read_voc_masks`.
        list_name: `"train"` or `"2012 train"`.
        split: the whole option, for messages.
    """
    years = voc_years(root)
    year, _, name = list_name.rpartition(" ")
    if not year and len(years) > 1:
        raise UserError(f"--split {split!r}: there are several years in {root}: write {min(years)} {name}")
    if year and year.strip() not in years:
        raise UserError(f"--split {split!r}: {root} has no year {year}; it has {', '.join(years)}")
    folder = years[year.strip()] if year else next(iter(years.values()))
    lists = folder / "ImageSets" / "Segmentation"
    names = sorted(path.stem for path in lists.glob("*.txt")) if lists.is_dir() else []
    if not names:
        return folder, None
    if name not in names:
        raise UserError(f"{lists / name}.txt: there is no such list: name two of {', '.join(names)} with --split")
    listed = read_lines(lists / f"{name}.txt")
    if not listed:
        raise UserError(f"{lists / name}.txt: lists no image")
    return folder, listed
