"""The encoder: levels, image sizes, pyramids, backbones and initialisation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from needs import need
from resim.errors import UserError
from resim.model.backbone import build_backbone
from resim.model.encoder import FPN, Encoder
from resim.regions.level import Level
from small_model import P3, P4, build, gradients, pair, small

# -- levels, sizes, backbones


def test_a_c_level_has_a_convolution() -> None:
    level = Level(name="C4", window=24, step=8, closed=True)
    model = build(levels=(level,), conv_width=12)
    assert model.query.fpn is None
    conv = model.query.convs["C4"]
    assert isinstance(conv, nn.Conv2d)
    assert (conv.in_channels, conv.out_channels, conv.kernel_size) == (256, 12, (3, 3))
    assert conv.bias is not None
    views_q, views_k = pair(4)
    keys = model.encode_keys(views_q, views_k)
    assert keys.levels["C4"].positives.wait().shape == (4, 36, 12)  # 0, 8, ..., 40 along each side
    assert keys.levels["C4"].windows[-1].tolist() == [40, 40, 64, 64]
    assert keys.levels["C4"].cells.wait().shape == (4 * 2 * 2, 12)
    losses = model(views_q, views_k)
    losses["total"].backward()
    assert losses["C4"] > 0
    assert gradients(model)["convs.C4.weight"].any()


def test_c_and_p_levels_in_one_model() -> None:
    losses = build(levels=(P4, Level(name="C4", window=24, step=16), Level(name="C3", window=16)))(*pair(2))
    assert list(losses)[:5] == ["instance", "P4", "C4", "C3", "total"]
    assert losses["P4"] > 0
    assert losses["C4"] > 0
    assert losses["C3"] > 0


@pytest.mark.slow
def test_a_third_level_is_a_line_of_configuration() -> None:
    p5 = Level(name="P5", window=64, step=32)
    model = build(levels=(p5, P4, P3))
    keys = model.encode_keys(*pair(2, size=128))
    assert keys.levels["P5"].positives.wait().shape == (2, 4, 16)
    assert keys.levels["P5"].cells.wait().shape == (2 * 2 * 2, 16)
    losses = model(*pair(2, size=128))
    losses["total"].backward()
    assert losses["total"].item() == pytest.approx(
        sum(losses[name].item() for name in ("instance", "P5", "P4", "P3")), rel=1e-12
    )
    assert gradients(model)["fpn.output5.weight"].any()


@pytest.mark.parametrize(
    ("levels", "modules"),
    [
        (("P4", "P3"), {"lateral5", "lateral4", "lateral3", "output4", "output3"}),
        (("P4",), {"lateral5", "lateral4", "output4"}),
        (("P5",), {"lateral5", "output5"}),
        (("P5", "P3"), {"lateral5", "lateral4", "lateral3", "output5", "output3"}),
    ],
)
def test_a_pyramid_has_only_the_convolutions_its_levels_need(levels: tuple[str, ...], modules: set[str]) -> None:
    fpn = FPN({"C3": 4, "C4": 4, "C5": 4}, list(levels), 8, norm=False)
    assert {name for name, _ in fpn.named_children()} == modules


def test_the_pyramid_adds_upsampled_maps_top_down() -> None:
    fpn = FPN({"C3": 1, "C4": 1, "C5": 1}, ["P4", "P3"], 1, norm=False)
    with torch.no_grad():
        for name, parameter in fpn.named_parameters():
            parameter.zero_()
            if name.startswith("lateral") and name.endswith("weight"):
                parameter.fill_(1)
            elif name.endswith("weight"):
                parameter[..., 1, 1] = 1  # the 3 x 3 convolutions pass their centre on
    c5 = torch.tensor([[100.0, 200.0], [300.0, 400.0]])
    c4 = torch.tensor([[10.0, 20.0, 30.0]] * 3)
    c3 = torch.arange(5.0).repeat(5, 1)
    maps = {"C3": c3[None, None], "C4": c4[None, None], "C5": c5[None, None]}
    with torch.no_grad():
        pyramid = fpn(maps)
    # 2 -> 3 cells: rows and columns 0, 0, 1; 3 -> 5 cells: 0, 0, 1, 1, 2
    assert list(pyramid) == ["P4", "P3"]
    p4 = [[110, 120, 230], [110, 120, 230], [310, 320, 430]]
    assert pyramid["P4"][0, 0].tolist() == p4
    rows = [[row[0], row[0] + 1, row[1] + 2, row[1] + 3, row[2] + 4] for row in p4]
    assert pyramid["P3"][0, 0].tolist() == [rows[0], rows[0], rows[1], rows[1], rows[2]]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "p4", "p3"), [(64, 4, 8), (100, 7, 13), (75, 5, 10), (96, 6, 12)])
def test_any_image_size(size: int, p4: int, p3: int) -> None:
    model = build()
    views_q, views_k = pair(2, size=size)
    maps = model.query(views_q.images)[1]
    assert (maps["P4"].shape, maps["P3"].shape) == ((2, 16, p4, p4), (2, 16, p3, p3))
    losses = model(views_q, views_k)
    losses["total"].backward()
    assert losses["P4"] > 0
    assert losses["P3"] > 0
    assert all(grad.isfinite().all() for grad in gradients(model).values())


@pytest.mark.slow
def test_without_levels_it_is_moco_v2() -> None:
    model = build(levels=())
    assert model.query.fpn is None
    assert len(model.query.convs) == 0
    views_q, views_k = pair(4)
    assert model.encode_keys(views_q, views_k).levels == {}
    losses = model(views_q, views_k)
    losses["total"].backward()
    assert set(losses) == {"instance", "accuracy/instance", "total"}
    assert torch.equal(losses["total"], losses["instance"])
    assert gradients(model)["head.2.weight"].any()


def test_a_timm_backbone_takes_the_place_of_the_resnet() -> None:
    need("timm", "a timm backbone takes the place of the ResNet", "timm")
    model = build(backbone="timm/mobilenetv3_small_050")
    losses = model(*pair(4))
    losses["total"].backward()
    assert losses["P4"] > 0
    assert losses["P3"] > 0
    assert all(grad.isfinite().all() for grad in gradients(model).values())
    assert any(name.startswith("query.backbone.") and "running_mean" in name for name in model.state_dict())


@pytest.mark.parametrize("name", ["resnet10t", "swin_tiny_patch4_window7_224"])
def test_timm_maps_are_channels_first_at_strides_8_16_and_32(name: str) -> None:
    need("timm", "timm maps have channels first and strides 8, 16 and 32", "timm")
    with torch.random.fork_rng(devices=[]):
        backbone = build_backbone(f"timm/{name}")
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, 224, 224))
    sides = {"C3": 28, "C4": 14, "C5": 7}
    assert {stage: tuple(features.shape) for stage, features in maps.items()} == {
        stage: (1, backbone.channels[stage], side, side) for stage, side in sides.items()
    }


@pytest.mark.parametrize(("name", "c5"), [("resnet18", 512), ("resnet50", 2048), ("resnext50_32x4d", 2048)])
def test_torchvision_s_resnets_keep_their_parameter_names(name: str, c5: int) -> None:
    with torch.random.fork_rng(devices=[]):
        backbone = build_backbone(name)
    assert backbone.channels == {"C3": c5 // 4, "C4": c5 // 2, "C5": c5}
    assert {"conv1.weight", "bn1.running_var", "layer4.1.conv2.weight"} <= set(backbone.state_dict())


@pytest.mark.parametrize("name", ["resnet51", "vgg16", "", "res2net50"])
def test_an_unknown_backbone_is_reported_with_the_known_ones(name: str) -> None:
    with pytest.raises(UserError, match=f"no backbone '{name}': one of .*resnet50.*, or timm/NAME"):
        build_backbone(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [("no_such_net", "has no model of that name"), ("vit_tiny_patch16_224", "8, 16 and 32 are needed")],
)
def test_an_unsuitable_timm_network_is_reported_with_the_reason(name: str, message: str) -> None:
    need("timm", "an unsuitable timm network is reported with the reason", "timm")
    with torch.random.fork_rng(devices=[]), pytest.raises(UserError) as error:
        build_backbone(f"timm/{name}")
    assert f"timm/{name}" in str(error.value)
    assert message in str(error.value)


def test_the_published_initialisation() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = Encoder(small(fpn_width=64))
    assert encoder.fpn is not None
    lateral, output = encoder.fpn.get_submodule("lateral5"), encoder.fpn.get_submodule("output4")
    for conv, fan_in in ((lateral, 512), (output, 64 * 9)):
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        assert not conv.bias.any()
        bound = (3 / fan_in) ** 0.5  # kaiming_uniform_(a=1)
        assert 0.98 * bound < conv.weight.abs().max().item() <= bound
    norm = encoder.backbone.get_submodule("layer1.0.bn2")
    assert isinstance(norm, nn.BatchNorm2d)
    assert torch.equal(norm.weight, torch.ones(64))  # residuals do not start at 0
    conv = encoder.backbone.get_submodule("layer4.0.conv1")
    assert isinstance(conv.weight, Tensor)
    assert conv.weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)  # fan-out
    assert [tuple(p.shape) for p in encoder.head.parameters()] == [(512, 512), (512,), (16, 512), (16,)]
