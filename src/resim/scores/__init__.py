"""Scores of detections: average precision as COCO, VOC and Cityscapes define it, its intervals, and a verdict."""
