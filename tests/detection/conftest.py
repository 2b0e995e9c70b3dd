"""The detectors of this folder are thin: they are built, trained and saved in a tenth of the time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def thin(thin_resnets: None) -> Iterator[None]:
    """Keypoint heads have an eighth of their channels; ResNets a quarter, but in tests that take `full_resnets`."""
    from torchvision.models.detection import keypoint_rcnn

    heads, predictor = keypoint_rcnn.KeypointRCNNHeads, keypoint_rcnn.KeypointRCNNPredictor
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            keypoint_rcnn, "KeypointRCNNHeads", lambda inputs, widths: heads(inputs, [width // 8 for width in widths])
        )
        patch.setattr(keypoint_rcnn, "KeypointRCNNPredictor", lambda inputs, count: predictor(inputs // 8, count))
        yield
