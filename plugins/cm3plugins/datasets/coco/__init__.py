"""Data set `coco`: COCO's annotations as captions, boxes, and pictures of segments and poses."""
