"""The former place of `resim.datasets.coco`; removed in version 0.2."""

from resim.datasets.coco import read_coco as read_coco
