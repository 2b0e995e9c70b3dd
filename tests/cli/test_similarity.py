"""`resim similarity`: the networks, the sheets that it writes, and one line for each error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resim import recipes
from resim.cli.main import main
from resim.draw.sheet import GAP, HEADING_PX, MARGIN, PANEL_PX, SCALE_PX
from resim.exchange.encoders import load_encoders
from resim.model.resim import ReSim
from resim.runs.checkpoints import load_checkpoint
from resim.runs.config import read_recipe
from resim.scenes.scenes import draw_scene
from resim.similarity.feature_maps import region_levels
from resim.similarity.figures import default_levels

Captured = pytest.CaptureFixture[str]
TINY = [
    "--recipe", "quick", "--batch-size", "4", "--group-size", "4", "--image-size", "64", "--levels",
    "P4:window=32,step=16", "--queue-size", "8", "--epochs", "1", "--workers", "0", "--device", "cpu", "--precision",
    "float32", "--picture-every", "0", "--seed", "3",
]  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scenes of different shapes."""
    folder = tmp_path_factory.mktemp("compared")
    for index, (width, height) in enumerate(((160, 112), (96, 144), (300, 100))):
        Image.fromarray(draw_scene(5, index, width=width, height=height).image).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one step."""
    out = tmp_path_factory.mktemp("runs") / "mine"
    sources = [str(images), *(str(images / f"{i}.png") for i in range(3))]
    extra = tmp_path_factory.mktemp("more") / "4.png"
    Image.fromarray(draw_scene(5, 4, width=96, height=96).image).save(extra)
    assert main(["pretrain", *sources, str(extra), *TINY, "--out", str(out)]) == 0
    return out


# -- networks


@pytest.mark.slow
def test_a_run_is_its_query_encoder_and_random_its_initial_weights(run: Path) -> None:
    trained, untrained = load_encoders([str(run), "random"])
    state = load_checkpoint(run / "checkpoints" / "last.pt")["model"]
    for name, value in trained.encoder.state_dict().items():
        assert torch.equal(value, state[f"query.{name}"]), name
    start = ReSim(read_recipe(run / "config.json").model, seed=3).query
    for name, value in untrained.encoder.state_dict().items():
        assert torch.equal(value, start.state_dict()[name]), name
    assert not trained.encoder.training
    assert not untrained.encoder.training


@pytest.mark.slow
def test_levels_are_those_that_the_region_losses_were_trained_on(run: Path) -> None:
    networks = load_encoders([str(run), "random:quick", "random:moco-v2"])
    assert default_levels(networks) == ("P4", "P3", "C4")
    assert default_levels(networks[:1]) == ("P4",)
    # the region loss reads a C level through an extra convolution
    assert region_levels(recipes.resim_c4().model) == ("C4+conv",)


# -- sheets


@pytest.mark.slow
def test_the_sheets_depend_on_the_number_of_images_and_the_region(
    images: Path, run: Path, tmp_path: Path, capsys: Captured
) -> None:
    paths = [str(images / f"{i}.png") for i in range(3)]
    out = tmp_path / "a"
    argv = [*paths, "--checkpoint", "random", str(run), "--box", "20,10,70,60", "--out", str(out)]
    assert main(["similarity", *argv]) == 0
    assert capsys.readouterr().out.split() == [str(out / name) for name in ("heat.png", "matches.png", "pca.png")]
    with Image.open(out / "heat.png") as sheet:
        assert sheet.width == 2 * MARGIN + 3 * PANEL_PX + 2 * GAP
    # one image and no region
    assert main(["similarity", paths[0], "--checkpoint", str(run), "--out", str(tmp_path / "b")]) == 0
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["pca.png"]


@pytest.mark.slow
def test_the_same_options_give_the_same_pictures(images: Path, run: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        argv = [str(images), "--checkpoint", str(run), "--point", "30,40", "--out", str(tmp_path / name)]
        assert main(["similarity", *argv]) == 0
    for picture in ("heat.png", "matches.png", "pca.png"):
        assert (tmp_path / "a" / picture).read_bytes() == (tmp_path / "b" / picture).read_bytes()


@pytest.mark.slow
def test_a_region_is_marked_at_its_position(images: Path, run: Path, tmp_path: Path) -> None:
    """In px of the file, even if the image is downscaled before it is encoded."""
    factor = PANEL_PX / 160
    for name, side in (("native", "1024"), ("small", "80")):
        argv = ["--checkpoint", str(run), "--box", "40,28,120,84", "--out", str(tmp_path / name), "--max-side", side]
        assert main(["similarity", str(images / "0.png"), *argv]) == 0
        columns = []  # the image without and with the region, cut out of the sheets
        for picture, top in (
            ("pca.png", MARGIN + 40 + 28 + HEADING_PX),
            ("heat.png", MARGIN + 40 + 28 + HEADING_PX + SCALE_PX),
        ):
            with Image.open(tmp_path / name / picture) as sheet:
                columns.append(np.asarray(sheet.crop((MARGIN, top, MARGIN + PANEL_PX, top + round(112 * factor)))))
        y, x = np.nonzero((columns[0] != columns[1]).any(axis=2))
        marked = [x.min(), y.min(), x.max() + 1, y.max() + 1]
        np.testing.assert_allclose(marked, np.array([40, 28, 120, 84]) * factor, atol=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--point", "200,5"], "--point 200,5: 0.png is 160 x 112 px"),
        (["--box", "5,5,5,9"], "--box 5,5,5,9: 0.png is 160 x 112 px; name a box inside the image with x0 < x1"),
        (["--box", "1,2,3"], "--box 1,2,3: must be X0,Y0,X1,Y1"),
        (["--point", "1,x"], "--point 1,x: must be X,Y"),
        (["--point", "nan,3"], "--point nan,3: must be X,Y"),
        (["--point", "1,2", "--box", "1,2,3,4"], "--point and --box: name one of them"),
        (["--levels", "P5"], "--levels P5: no network has this level; name some of P4, C3, C4, C5"),
        (["--max-side", "8"], "--max-side 8: must be at least 32"),
        (["--pairs", "0"], "--pairs 0: must be at least 1"),
        (["--heat"], "--heat"),
    ],
)
def test_options_that_cannot_work(
    images: Path, run: Path, tmp_path: Path, capsys: Captured, words: list[str], message: str
) -> None:
    out = tmp_path / "out"
    capsys.readouterr()
    assert main(["similarity", str(images / "0.png"), "--checkpoint", str(run), "--out", str(out), *words]) == 2
    line = capsys.readouterr().err
    assert message in line
    assert line.count("\n") == 1
    assert not out.exists()


def test_files_that_cannot_be_read_are_one_line(images: Path, run: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "broken.png").write_bytes(b"PNG?")
    (tmp_path / "many").mkdir()
    for i in range(13):
        (tmp_path / "many" / f"{i}.png").touch()
    for image, checkpoint, message in (
        (tmp_path / "none.png", run, "there is no such folder or file"),
        (tmp_path / "broken.png", run, "broken.png: cannot be read as an image"),
        (tmp_path / "many", run, "13 images are more than a sheet can show: name at most 12"),
        (images / "0.png", tmp_path / "none.pt", "none.pt"),
        (images / "0.png", tmp_path / "broken.png", "broken.png"),
        (images / "0.png", tmp_path, "without checkpoints/last.pt"),
    ):
        assert main(["similarity", str(image), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")]) == 2
        line = capsys.readouterr().err
        assert message in line
        assert line.count("\n") == 1
    assert not (tmp_path / "out").exists()
