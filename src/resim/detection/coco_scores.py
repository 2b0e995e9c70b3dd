"""The former place of `resim.scores.coco`; removed in version 0.2."""

from resim.scores.coco import coco_scores as coco_scores
