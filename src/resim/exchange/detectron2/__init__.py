"""Fine-tuning in Detectron2, which is not a dependency: configs of the published protocols and a launcher.

`python -m resim.exchange.detectron2 train --config-file coco-fpn-1x.yaml MODEL.WEIGHTS backbone.pth`
"""
