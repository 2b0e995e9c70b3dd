"""The command line: what it writes, and one line for whatever cannot work."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resim import recipes
from resim.cli import demo, pretrain, preview, probe, scenes
from resim.cli.main import VERBS, main
from resim.model.encoder import ModelConfig
from resim.probes.suite import ProbeConfig
from resim.regions.level import Level
from resim.runs.config import OptimConfig, RunConfig, read_recipe
from resim.views.crops import ViewsConfig

Captured = pytest.CaptureFixture[str]
LEVEL = "P4:window=32,step=16"
TINY = [
    "--recipe", "quick", "--batch-size", "4", "--group-size", "4", "--image-size", "64", "--levels", LEVEL,
    "--queue-size", "8", "--epochs", "1", "--workers", "0", "--device", "cpu", "--precision", "float32",
]  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of twelve small JPEGs."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(12):
        coarse = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((120, 90), Image.Resampling.BICUBIC).save(folder / f"{i:02d}.jpg")
    return str(folder)


@pytest.fixture(scope="module")
def finished(images: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of three steps."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(["pretrain", images, *TINY, "--out", str(out)]) == 0
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run that a test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def refusal(capsys: Captured, *words: str) -> str:
    """The one line on the error output; nothing else is printed there, and the exit code is 2."""
    capsys.readouterr()
    assert main(words) == 2
    message = capsys.readouterr().err
    assert message.endswith("\n")
    assert message.count("\n") == 1
    return message.rstrip("\n")


# -- input that cannot work


def test_sources_that_cannot_be_read(capsys: Captured, images: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("gone.jpg\n")
    for verb in ("pretrain", "preview"):
        for source, message in (
            (tmp_path / "empty", "no images found in"),
            (tmp_path / "missing", "there is no such folder or file"),
            (tmp_path / "list.txt", "line 1: gone.jpg: there is no such file"),
        ):
            line = refusal(capsys, verb, str(source), "--out", str(tmp_path / "out.png"))
            assert line.startswith(f"resim {verb}: ")
            assert str(source) in line
            assert message in line
        assert "no images: name at least one folder" in refusal(capsys, verb)
    assert not (tmp_path / "out.png").exists()


def test_a_line_is_one_even_if_a_name_is_two(capsys: Captured) -> None:
    assert "/no such: there is no such folder" in refusal(capsys, "pretrain", "/no\nsuch")


@pytest.mark.parametrize("verb", ["pretrain", "preview"])
def test_an_unknown_recipe(capsys: Captured, images: str, tmp_path: Path, verb: str) -> None:
    line = refusal(capsys, verb, images, "--recipe", "resnim")
    assert "no recipe 'resnim': one of resim-fpn, resim-c4, moco-v2, quick, or a .json file" in line
    missing = tmp_path / "mine.json"
    assert f"{missing}: cannot be read" in refusal(capsys, verb, images, "--recipe", str(missing))
    missing.write_text('{"name": "mine"}')
    assert f"{missing}: contains no recipe" in refusal(capsys, verb, images, "--recipe", str(missing))
    missing.write_text("{")
    assert f"{missing}: contains no recipe" in refusal(capsys, verb, images, "--recipe", str(missing))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backbone", "resnet51"], "no backbone 'resnet51': one of "),
        (["--backbone", "vgg16"], "no backbone 'vgg16': one of "),
        (["--levels", "P4:window=64,step=16"], "level P4: no window of 64 px fits into a view of 64 px"),
        (["--levels", "P4:window=x"], "--levels: level P4: window='x' is not a whole number"),
        (["--levels", "P4:width=32"], "--levels: level P4: no field 'width'"),
        (["--levels", "P6"], "--levels: level 'P6': a level is one of P3, P4, P5"),
        (["--levels", "P4:negatives=some"], "--levels: level P4: negatives 'some': must be one of all, node, group"),
        (["--levels", LEVEL, LEVEL], "levels P4, P4: name each level once"),
        (["--batch-size", "2"], "batch-size 2 is no whole number of groups of 4 images"),
        (["--batch-size", "6"], "set --batch-size to a multiple of 4, or --group-size to a divisor of 6"),
        (["--batch-size", "16"], "12 images are fewer than one batch of 16: set --batch-size 12, or add images"),
        (["--batch-size", "32", "--group-size", "32"], "set --batch-size 12 --group-size 12, or add images"),
        (["--batch-size", "four"], "--batch-size"),
        (["--batch-size", "4.5"], "--batch-size"),
        (["--batch-size"], "--batch-size"),
        (["--lr", "-1"], "lr -1.0: must be at least 0"),
        (["--temperature", "0"], "temperature 0.0: must be above 0"),
        (["--crop-area", "0.5", "0.2"], "crop-area 0.5 0.2: the smaller number must be the first"),
        (["--flip", "sideways"], "--flip"),
        (["--workers", "-2"], "workers -2: must be at least -1"),
        (["--no-such-option", "3"], "--no-such-option"),
        (["--resume"], "--resume needs --out: the folder of the run to continue"),
        (["--recipe"], "--recipe: expected one argument"),
        (["--out"], "--out: expected one argument"),
    ],
)
def test_settings_that_cannot_work(
    capsys: Captured, images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refusal(capsys, "pretrain", images, *TINY, *words)
    assert line.startswith("resim pretrain: ")
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_unknown_verbs_and_options(capsys: Captured, tmp_path: Path) -> None:
    assert refusal(capsys, "train") == f"resim: no verb 'train': one of {', '.join(VERBS)}; did you mean 'pretrain'?"
    assert "no verb '--quiet'" in refusal(capsys, "--quiet")
    for words in (["recipes", "--all"], ["scenes", str(tmp_path / "s"), "--all"], ["demo", "--all"]):
        line = refusal(capsys, *words)
        assert line.startswith(f"resim {words[0]}: ")
        assert "--all" in line
    assert "unrecognized arguments: moco-v2" in refusal(capsys, "recipes", "quick", "moco-v2")
    assert "no recipe 'slow'" in refusal(capsys, "recipes", "slow")
    assert not (tmp_path / "s").exists()


def test_preview_and_scenes_refuse_what_they_cannot_draw(capsys: Captured, images: str, tmp_path: Path) -> None:
    out = str(tmp_path / "p.png")
    assert "--count 0: must be at least 1" in refusal(capsys, "preview", images, "--count", "0", "--out", out)
    assert "must end in .png, .jpg or .webp" in refusal(capsys, "preview", images, "--out", str(tmp_path / "p.gif"))
    line = refusal(capsys, "preview", images, "--levels", "P4:window=300", "--out", out)
    assert "no window of 300 px fits into a view of 224 px" in line
    (tmp_path / "bad.jpg").write_text("no picture\n")
    line = refusal(capsys, "preview", str(tmp_path / "bad.jpg"), "--out", out)
    assert f"none of 1 image can be decoded, for example {tmp_path / 'bad.jpg'}" in line
    (tmp_path / "bad.jpg").unlink()
    assert "count 0: must be 1 or more" in refusal(capsys, "scenes", str(tmp_path / "s"), "--count", "0")
    assert "resim scenes --help" in refusal(capsys, "scenes")
    assert list(tmp_path.iterdir()) == []


# -- a run, and going on with it


@pytest.mark.slow
def test_a_run_writes_its_settings_and_a_checkpoint(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {"config.json", "metrics.jsonl", "checkpoints", "curves.png", "pictures"} <= names
    assert (finished / "checkpoints" / "last.pt").stat().st_size > 1_000_000
    steps = [json.loads(line)["step"] for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2]


@pytest.mark.slow
def test_what_the_command_line_says_reaches_the_recipe(finished: Path, images: str) -> None:
    content = json.loads((finished / "config.json").read_text())
    assert content["recipe"]["model"]["levels"] == ["P4:window=32,step=16,negatives=all,closed=false,weight=1"]
    assert content["data"]["images"] == 12
    assert content["data"]["sources"] == [images]
    recipe, quick = read_recipe(finished / "config.json"), recipes.quick()
    assert recipe == dataclasses.replace(
        quick,
        model=dataclasses.replace(
            quick.model, levels=(Level(name="P4", window=32, step=16),), queue_size=8, group_size=4
        ),
        views=dataclasses.replace(quick.views, image_size=64),
        optim=dataclasses.replace(quick.optim, batch_size=4, epochs=1),
    )


@pytest.mark.slow
def test_a_folder_that_holds_a_run_takes_no_other(capsys: Captured, images: str, finished: Path) -> None:
    line = refusal(capsys, "pretrain", images, *TINY, "--out", str(finished))
    assert f"--out {finished}: already contains a run: continue it with --resume, or name another folder" in line


def test_a_file_is_no_folder_for_a_run(capsys: Captured, images: str, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    line = refusal(capsys, "pretrain", images, *TINY, "--out", str(tmp_path / "out"))
    assert "is a file, a folder is needed" in line
    assert (tmp_path / "out").read_text() == "mine"


def test_no_run_to_resume(capsys: Captured, images: str, tmp_path: Path) -> None:
    line = refusal(capsys, "pretrain", images, *TINY, "--resume", "--out", str(tmp_path / "none"))
    assert f"--resume: {tmp_path / 'none'} contains no run" in line
    assert not (tmp_path / "none").exists()


def test_resume_with_another_recipe_says_what_differs(capsys: Captured, images: str, finished: Path) -> None:
    where = ["--resume", "--out", str(finished)]
    line = refusal(capsys, "pretrain", images, *TINY, *where, "--lr", "0.5", "--batch-size", "8")
    assert "--resume with another recipe than the run's: --batch-size 4 -> 8, --lr 0.03 -> 0.5" in line
    line = refusal(capsys, "pretrain", images, "--recipe", "moco-v2", "--batch-size", "4", "--group-size", "4", *where)
    assert "--backbone resnet18 -> resnet50" in line
    assert "--levels P4:window=32,step=16,negatives=all,closed=false,weight=1 -> none" in line


@pytest.mark.slow
def test_resume_takes_the_runs_own_recipe_and_refuses_other_images(
    capsys: Captured, images: str, finished: Path, tmp_path: Path
) -> None:
    before = (finished / "metrics.jsonl").read_text()
    words = ["--workers", "0", "--device", "cpu", "--resume", "--out", str(finished)]
    assert main(["pretrain", images, *words]) == 0  # nothing is left to do
    assert (finished / "metrics.jsonl").read_text() == before
    moved = Path(shutil.copytree(images, tmp_path / "moved"))
    assert main(["pretrain", str(moved), *words]) == 0
    (moved / "00.jpg").rename(moved / "other.jpg")
    line = refusal(capsys, "pretrain", str(moved), *words)
    assert "--resume with other images: the run started with 12" in line


@pytest.mark.slow
def test_a_truncated_checkpoint(capsys: Captured, images: str, run: Path) -> None:
    last = run / "checkpoints" / "last.pt"
    whole = last.read_bytes()
    for length in (0, 1000, len(whole) - 1000):
        last.write_bytes(whole[:length])
        line = refusal(capsys, "pretrain", images, *TINY, "--resume", "--out", str(run))
        assert f"no checkpoint in {last.parent} is whole: last.pt (" in line
        assert f"{length} bytes" in line


def test_a_truncated_config(capsys: Captured, images: str, run: Path) -> None:
    config = run / "config.json"
    config.write_text(config.read_text()[:200])
    for words in ([], TINY):
        line = refusal(capsys, "pretrain", images, *words, "--resume", "--out", str(run))
        assert f"{config}: contains no recipe" in line


# -- help


@pytest.mark.parametrize(
    ("verb", "kinds"),
    [
        ("pretrain", [pretrain.Options, ModelConfig, ViewsConfig, OptimConfig, RunConfig]),
        ("preview", [preview.Options, ViewsConfig]),
        ("scenes", [scenes.Options]),
        ("demo", [demo.Options]),
        ("probe", [probe.Options, ProbeConfig]),
    ],
)
def test_help_explains_every_field(capsys: Captured, verb: str, kinds: list[type]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    message = capsys.readouterr().out
    assert (VERBS[verb].__doc__ or "").split(":")[0].split(".")[0] in " ".join(message.replace("│", " ").split())
    for kind in kinds:
        for field in dataclasses.fields(kind):
            if dataclasses.is_dataclass(field.type) or field.name in (
                "model",
                "views",
                "optim",
                "run",
                "config",
                "label_maps",
                "dense",
                "command",  # no option: the words of the command
            ):
                continue
            positional = field.name in ("sources", "words") or (verb == "scenes" and field.name == "out")
            metavars = {"sources": "DIR", "words": "NETWORK", "out": "PATH"}
            switch = "--no-" if field.default is True else "--"
            name = metavars[field.name] if positional else switch + field.name.replace("_", "-")
            assert name in message.replace(",", " ").split(), name


def test_help_of_recipes_and_of_the_command(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["recipes", "--help"])
    assert stop.value.code == 0
    assert "usage: resim recipes" in capsys.readouterr().out
    for words in (["--help"], ["-h"], ["help"]):
        assert main(words) == 0
        message = capsys.readouterr().out
        assert all(verb in message for verb in VERBS)
    assert main([]) == 2


def test_help_shows_the_recipes_own_values(capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        main(["pretrain", "--recipe", "quick", "--help"])
    assert "resnet18" in capsys.readouterr().out


def test_the_version(capsys: Captured) -> None:
    import resim

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{resim.__version__}\n"


# -- recipes


def test_all_recipes_are_listed(capsys: Captured) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["resim-fpn", "resim-c4", "moco-v2", "quick"]


@pytest.mark.parametrize("name", list(recipes.RECIPES))
def test_a_recipe_is_printed_as_it_can_be_read_back(capsys: Captured, tmp_path: Path, name: str) -> None:
    assert main(["recipes", name]) == 0
    text = capsys.readouterr().out
    assert json.loads(text)["name"] == name
    path = tmp_path / "printed.json"
    path.write_text(text)
    assert read_recipe(path) == recipes.RECIPES[name]()
    assert main(["recipes", str(path)]) == 0
    assert capsys.readouterr().out == text


def test_resim_fpn_holds_the_published_figures() -> None:
    recipe = recipes.resim_fpn()
    model, views, optim = recipe.model, recipe.views, recipe.optim
    assert (model.backbone, model.fpn_width, model.fpn_norm, model.dim) == ("resnet50", 256, False, 128)
    assert (model.queue_size, model.key_momentum, model.temperature, model.group_size) == (65536, 0.999, 0.2, 32)
    assert (optim.batch_size, optim.lr, optim.epochs, optim.schedule) == (256, 0.03, 200, "cosine")
    assert (optim.momentum, optim.weight_decay) == (0.9, 1e-4)
    assert (views.image_size, views.crop_area, views.crop_aspect) == (224, (0.2, 1.0), (3 / 4, 4 / 3))
    assert (views.flip, views.photometric_order) == ("shared", "blur-jitter-gray")
    assert (views.blur_probability, views.blur_sigma) == (0.5, (0.1, 2.0))
    assert (views.jitter_probability, views.gray_probability) == (0.8, 0.2)
    assert (views.brightness, views.contrast, views.saturation, views.hue) == (0.4, 0.4, 0.4, 0.1)
    p4, p3 = model.levels
    assert (p4.name, p4.window, p4.step, p4.negatives, p4.weight) == ("P4", 48, 32, "all", 1)
    assert (p3.name, p3.window, p3.step, p3.negatives, p3.weight) == ("P3", 32, 24, "group", 1)
    assert (len(p4.windows(224)), len(p3.windows(224))) == (36, 64)


def test_resim_c4_differs_from_it_in_its_level_alone() -> None:
    recipe, fpn = recipes.resim_c4(), recipes.resim_fpn()
    (level,) = recipe.model.levels
    assert (level.name, level.window, level.step, level.negatives, level.weight) == ("C4", 48, 16, "all", 1)
    assert len(level.windows(224)) == 144
    assert recipe.model.conv_width == 128
    assert dataclasses.replace(recipe.model, levels=fpn.model.levels) == fpn.model
    assert (recipe.views, recipe.optim) == (fpn.views, fpn.optim)


def test_moco_v2_differs_from_it_in_its_levels_flip_and_order() -> None:
    recipe, fpn = recipes.moco_v2(), recipes.resim_fpn()
    assert recipe.model == dataclasses.replace(fpn.model, levels=())
    assert recipe.views == dataclasses.replace(fpn.views, flip="independent", photometric_order="jitter-gray-blur")
    assert recipe.optim == fpn.optim


# -- pictures and scenes


@pytest.mark.parametrize("name", ["sheet.png", "sheet.jpg", "deeper/sheet.webp"])
def test_preview_writes_a_picture(capsys: Captured, images: str, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    words = ["--recipe", "quick", "--image-size", "64", "--levels", LEVEL, "--count", "2", "--out", str(out)]
    assert main(["preview", images, *words]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    with Image.open(out) as sheet:
        assert sheet.format == {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}[out.suffix]
        assert min(sheet.size) > 128
        assert np.asarray(sheet).std() > 10


def test_preview_draws_the_same_for_the_same_seed(images: str, tmp_path: Path) -> None:
    sheets = []
    for i, seed in enumerate(("1", "1", "2")):
        out = tmp_path / f"{i}.png"
        assert main(["preview", images, "--recipe", "moco-v2", "--count", "1", "--seed", seed, "--out", str(out)]) == 0
        sheets.append(out.read_bytes())
    assert sheets[0] == sheets[1] != sheets[2]


def test_preview_of_a_name_that_is_no_utf_8(images: str, tmp_path: Path) -> None:
    raw = tmp_path / "caf\udce9 \n.jpg"
    shutil.copy(Path(images) / "00.jpg", raw)
    assert main(["preview", str(raw), "--recipe", "quick", "--count", "1", "--out", str(tmp_path / "p.png")]) == 0
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_scenes_are_written(capsys: Captured, tmp_path: Path) -> None:
    out = tmp_path / "scenes"
    assert main(["scenes", str(out), "--count", "2", "--width", "96", "--height", "64", "--seed", "3"]) == 0
    assert capsys.readouterr().out == f"{out / 'instances.json'}\n"
    content = json.loads((out / "instances.json").read_text())
    assert len(content["images"]) == 2
    for record in content["images"]:
        with Image.open(out / "images" / record["file_name"]) as image:
            assert image.size == (96, 64)
