"""The kinds of faults in labelled data: what is wrong, and how it is repaired, in the words of the messages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FaultKind:
    """The words for a kind of fault.

    Attributes:
        one: what is wrong, for a single fault.
        many: what is wrong, for several.
        repair: what is done about it.
    """

    one: str
    many: str
    repair: str

    def problem(self, count: int) -> str:
        """What is wrong, for `count` faults of this kind."""
        return self.one if count == 1 else self.many


_AREA = "computed from the mask, or from the box if there is no mask"

FAULTS: dict[str, FaultKind] = {
    # images
    "missing-image": FaultKind("image file not found", "image files not found", "skipped"),
    "other-name": FaultKind(
        "file name that differs from the name of the file",
        "file names that differ from the names of the files",
        "matched to the only file that fits",
    ),
    "unread-format": FaultKind(
        "image file of a format that is not read", "image files of formats that are not read", "skipped"
    ),
    "unreadable-image": FaultKind("image file that cannot be decoded", "image files that cannot be decoded", "skipped"),
    "size-exchanged": FaultKind(
        "image with width and height exchanged in its annotation",
        "images with width and height exchanged in their annotations",
        "read with the size of the file, which the boxes fit",
    ),
    "image-size": FaultKind(
        "image file whose size differs from its annotation",
        "image files whose sizes differ from their annotations",
        "skipped",
    ),
    "missing-annotation": FaultKind(
        "image without a readable annotation file", "images without a readable annotation file", "skipped"
    ),
    "bad-image": FaultKind(
        "image entry without a usable id or file_name", "image entries without a usable id or file_name", "skipped"
    ),
    "one-id": FaultKind(
        "image id that several files share, so that its annotations cannot be assigned",
        "image ids that several files share, so that their annotations cannot be assigned",
        "all of these files skipped",
    ),
    "listed-twice": FaultKind("image listed twice", "images listed twice", "read once"),
    "bad-entry": FaultKind(
        "entry that is not a JSON object or has no id", "entries that are not JSON objects or have no id", "ignored"
    ),
    # annotations and their images
    "unknown-image": FaultKind(
        "annotation of an image that is not listed", "annotations of images that are not listed", "dropped"
    ),
    "image-id": FaultKind(
        "annotation whose image_id is of another type than the id of the image",
        "annotations whose image_id is of another type than the id of the image",
        "matched as numbers",
    ),
    "image-by-name": FaultKind(
        "annotation whose image_id is the name of an image file",
        "annotations whose image_id is the name of an image file",
        "matched by name",
    ),
    # categories
    "unknown-category": FaultKind("annotation of an unknown category", "annotations of unknown categories", "dropped"),
    "category-by-name": FaultKind(
        "annotation whose category_id is the name of a category",
        "annotations whose category_id is the name of a category",
        "matched by name",
    ),
    "only-category": FaultKind(
        "annotation without a category_id",
        "annotations without a category_id",
        "assigned to the only category",
    ),
    "no-categories": FaultKind(
        "file without a list of categories",
        "files without a list of categories",
        "the categories of the annotations are used",
    ),
    "text-category": FaultKind(
        "category whose id is text", "categories whose ids are text", "numbered, and results files use the numbers"
    ),
    "category-twice": FaultKind("category listed twice", "categories listed twice", "read once"),
    "same-name": FaultKind(
        "category with the name of another category",
        "categories with the name of another category",
        "merged into one class, with the smaller id",
    ),
    "category-keypoints": FaultKind(
        "`keypoints` of a category that is not a list or differs between categories",
        "`keypoints` of categories that are not lists or differ between categories",
        "no keypoints are read",
    ),
    "category-case": FaultKind(
        "annotation whose class differs in letter case from the name of the class",
        "annotations whose classes differ in letter case from the names of the classes",
        "matched regardless of case",
    ),
    # boxes
    "decimal-comma": FaultKind("box with decimal commas", "boxes with decimal commas", "read with decimal points"),
    "fractions": FaultKind(
        "box within 1.5 px of the corner of its image, like fractions of the image",
        "boxes within 1.5 px of the corner of their images, like fractions of the image",
        "dropped: boxes are in pixels",
    ),
    "box-form": FaultKind("bbox that is not a list of numbers", "bboxes that are not lists of numbers", "converted"),
    "box-from-mask": FaultKind(
        "annotation without a usable bbox", "annotations without a usable bbox", "computed from the mask"
    ),
    "no-box": FaultKind(
        "annotation with neither a bbox of four numbers nor a mask",
        "annotations with neither a bbox of four numbers nor a mask",
        "dropped",
    ),
    "not-finite": FaultKind(
        "annotation with missing, NaN or infinite numbers",
        "annotations with missing, NaN or infinite numbers",
        "dropped",
    ),
    "no-shares": FaultKind(
        "YOLO line with coordinates outside 0 to 1", "YOLO lines with coordinates outside 0 to 1", "dropped"
    ),
    "keypoints-left-out": FaultKind(
        "object with keypoints, which are not supported in YOLO files",
        "objects with keypoints, which are not supported in YOLO files",
        "read as boxes without keypoints",
    ),
    "keypoints-unstated": FaultKind(
        "line with numbers like a box and keypoints, while no kpt_shape is stated",
        "lines with numbers like a box and keypoints, while no kpt_shape is stated",
        "read as boxes without keypoints",
    ),
    "corners-reversed": FaultKind(
        "box with corners in reverse order", "boxes with corners in reverse order", "reordered"
    ),
    "zero-area": FaultKind("box of zero area", "boxes of zero area", "dropped"),
    "outside": FaultKind(
        "box that lies entirely outside its image", "boxes that lie entirely outside their images", "dropped"
    ),
    "overhang": FaultKind("box that extends beyond its image", "boxes that extend beyond their images", "clipped"),
    "area": FaultKind("annotation without a usable area", "annotations without a usable area", _AREA),
    # masks, keypoints and flags
    "mask-form": FaultKind(
        "segmentation in another form than COCO's", "segmentations in another form than COCO's", "converted"
    ),
    "short-polygon": FaultKind(
        "polygon with fewer than three points",
        "polygons with fewer than three points",
        "polygon dropped, box kept",
    ),
    "bad-mask": FaultKind(
        "mask that does not fit its image or is not a COCO segmentation",
        "masks that do not fit their images or are not COCO segmentations",
        "mask dropped, box kept",
    ),
    "empty-mask": FaultKind("mask without a pixel", "masks without a pixel", "mask dropped, box kept"),
    "keypoint-form": FaultKind(
        "object with keypoints in another form than x, y, visibility",
        "objects with keypoints in another form than x, y, visibility",
        "converted",
    ),
    "bad-keypoints": FaultKind(
        "object whose keypoints are not three numbers for each keypoint of the category",
        "objects whose keypoints are not three numbers for each keypoint of the category",
        "treated as not labelled",
    ),
    "odd-flag": FaultKind(
        "flag that is neither true nor false", "flags that are neither true nor false", "treated as false"
    ),
}
"""What strict reading stops at, by kind."""

NOTES: dict[str, FaultKind] = {
    "crowd-as-objects": FaultKind(
        "crowd region (iscrowd 1)", "crowd regions (iscrowd 1)", "read as single objects by --crowd-as-objects"
    ),
    "orientation": FaultKind(
        "image that its EXIF orientation turns or mirrors, while no size shows how it was labelled",
        "images that their EXIF orientations turn or mirror, while no size shows how they were labelled",
        "read as labelled upright",
    ),
    "rotated": FaultKind(
        "box with a rotation in its attributes, and without a mask",
        "boxes with a rotation in their attributes, and without a mask",
        "read without the rotation",
    ),
    "mask-apart": FaultKind(
        "mask that lies apart from its box", "masks that lie apart from their boxes", "both read as they are"
    ),
    "keypoints-apart": FaultKind(
        "object whose labelled keypoints all lie apart from its box",
        "objects whose labelled keypoints all lie apart from their boxes",
        "both read as they are",
    ),
    "zero-based": FaultKind(
        "box that begins at 0, while VOC counts pixels from 1",
        "boxes that begin at 0, while VOC counts pixels from 1",
        "read as VOC's, so that left and top edges may lie one pixel too far out",
    ),
    "similar-names": FaultKind(
        "class whose name differs from that of another class only in letter case",
        "classes whose names differ from those of other classes only in letter case",
        "read as classes of their own",
    ),
    "no-bbox": FaultKind("annotation without a bbox", "annotations without a bbox", "computed from the mask"),
    "no-area": FaultKind("annotation without an area", "annotations without an area", _AREA),
    "ignore": FaultKind(
        "annotation marked `ignore` but not `iscrowd`",
        "annotations marked `ignore` but not `iscrowd`",
        "read like any other object, as in COCO's evaluation",
    ),
    "unnamed-keypoints": FaultKind(
        "annotation with keypoints of a category that names none",
        "annotations with keypoints of a category that names none",
        "read without keypoints",
    ),
    "no-name": FaultKind("category without a name", "categories without a name", "the id is used as the name"),
    "parent-category": FaultKind(
        "category that is the parent of the others and of no annotation (Roboflow)",
        "categories that are the parent of the others and of no annotation (Roboflow)",
        "ignored",
    ),
    "file-name": FaultKind(
        "image entry without a file_name", "image entries without a file_name", "the name under another key is used"
    ),
    "file-twice": FaultKind(
        "image file listed under several ids",
        "image files listed under several ids",
        "read as several images, each with its own annotations",
    ),
    "corners": FaultKind(
        "box that extends beyond its image as x, y, width, height, while all boxes of the file fit as corners x0, y0, "
        "x1, y1",
        "boxes that extend beyond their images as x, y, width, height, while all boxes of the file fit as corners x0, "
        "y0, x1, y1",
        "clipped: if they are corners, rewrite them as x, y, width, height",
    ),
    "lvis": FaultKind(
        "LVIS file",
        "LVIS files",
        "scored by COCO's evaluation, which, unlike LVIS's, counts detections of classes that an image does not list",
    ),
    "class-ids": FaultKind(
        "class whose category id differs from that in the detector's training data",
        "classes whose category ids differ from those in the detector's training data",
        "matched by name",
    ),
    "class-case": FaultKind(
        "class whose name differs in letter case from that in the detector's training data",
        "classes whose names differ in letter case from those in the detector's training data",
        "matched regardless of case",
    ),
    "class-by-id": FaultKind(
        "class that has a name in only one of the two data sets",
        "classes that have a name in only one of the two data sets",
        "matched by id",
    ),
    "unused-class": FaultKind(
        "class without objects that the detector does not know",
        "classes without objects that the detector does not know",
        "ignored",
    ),
}
"""What is reported, but is no fault at which strict reading stops."""

KINDS = FAULTS | NOTES
