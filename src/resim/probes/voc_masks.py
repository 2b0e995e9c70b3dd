"""VOC's layout of label maps: SegmentationClass, and the lists of ImageSets/Segmentation."""

from __future__ import annotations

from pathlib import Path

from resim.datasets.voc import CLASSES
from resim.errors import UserError
from resim.probes.label_files import label_files, read_lines, read_names, voc_colours
from resim.probes.labelled_images import LabelledImages, left_out
from resim.views.folder import find_images


def voc_years(root: Path) -> dict[str, Path]:
    """The folders of years at or below a root that hold VOC's masks, by their number."""
    if not root.is_dir():
        return {}
    devkit = root / "VOCdevkit" if (root / "VOCdevkit").is_dir() else root
    folders = [root, *sorted(devkit.glob("VOC*"))]
    there = [folder for folder in folders if (folder / "JPEGImages").is_dir() and _voc_masks(folder) is not None]
    return {folder.name.removeprefix("VOC"): folder for folder in there}


def _voc_masks(folder: Path) -> Path | None:
    return next(
        (folder / name for name in ("SegmentationClass", "SegmentationClassAug") if (folder / name).is_dir()), None
    )


def read_voc_masks(root: Path, part: str, labels: Path | None) -> LabelledImages:
    """The images of a list with their masks.

    Args:
        root: `VOCdevkit`, the folder around it, or the folder of a year.
        part: the list, `"train"`; of several years `"2012 train+2007 train"`. A year without lists is read whole.
        labels: folder of the masks; None: `SegmentationClass`.

    Raises:
        UserError: no such year or list, or none of its images is there with its mask.
    """
    images: dict[str, str] = {}
    missing: list[str] = []
    names, colours = {}, {}
    for one in part.split("+"):
        folder, listed = _voc_list(root, one.strip(), part)
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
        raise UserError(f"{source}: none of {len(missing)} listed images is there with its mask ({missing[0]})")
    return LabelledImages(
        source=source,
        kind="VOC masks",
        images=tuple(images),
        labels=tuple(images.values()),
        names=names or dict(enumerate(("background", *CLASSES))),
        colours=colours or voc_colours(),
        notes=left_out(missing, "listed image without picture or mask", "listed images without picture or mask"),
    )


def _voc_list(root: Path, one: str, whole: str) -> tuple[Path, list[str] | None]:
    """The folder of a year, and one of its lists; None: it has no lists."""
    years = voc_years(root)
    year, _, name = one.rpartition(" ")
    if not year and len(years) > 1:
        raise UserError(f"--split {whole!r}: several years at {root}: write {min(years)} {name}")
    if year and year.strip() not in years:
        raise UserError(f"--split {whole!r}: no year {year} at {root}: there is {', '.join(years)}")
    folder = years[year.strip()] if year else next(iter(years.values()))
    lists = folder / "ImageSets" / "Segmentation"
    there = sorted(path.stem for path in lists.glob("*.txt")) if lists.is_dir() else []
    if not there:
        return folder, None
    if name not in there:
        raise UserError(f"{lists / name}.txt: there is no such list: name two of {', '.join(there)} with --split")
    listed = read_lines(lists / f"{name}.txt")
    if not listed:
        raise UserError(f"{lists / name}.txt: lists no image")
    return folder, listed
