"""Detection data sets: records of images with boxes, masks and keypoints, read from any common layout.

Reading
    `layouts` recognises the layout of a path and reads it.
    COCO: `coco`, by its `coco_file`, `coco_categories`, `coco_images` and `coco_annotations`.
    PASCAL VOC: `voc`, by its `voc_layout` (folders, lists) and `voc_xml`.
    Cityscapes: `cityscapes`.
    YOLO: `yolo`, by its `yolo_layout` (folders, data.yaml) and `yolo_label_files`.
    Other formats: `foreign_formats` (folders, files) and `foreign_json` name them and the command that converts them.

Records
    `records` is the form in memory, `record_checks` checks objects and builds it, `masks` decodes segmentations, and
    `validation_split` holds out a share.

Repairs
    `repairs` is the log of faults, `fault_kinds` their wording. `annotation_values` reads single values in any
    notation, `named_files` locates files whose names differ, `image_sizes` compares sizes.
"""
