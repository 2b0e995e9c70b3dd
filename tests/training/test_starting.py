"""A run starts from any weights: which source is named, which entries are loaded, are new and are left over."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor

from exchange_files import SMALL, own_checkpoint, small, trained
from resim import recipes
from resim.cli.main import main
from resim.detection.compare import Start as CompareStart
from resim.detection.config import DetectorConfig
from resim.detection.init import resolve
from resim.distributed.processes import start_processes
from resim.errors import UserError
from resim.exchange import sources
from resim.exchange.encoders import load_encoders
from resim.exchange.queues import fit_queue
from resim.exchange.sources import NAMES, is_at_hand, locate, torchvision_file, untrained_model
from resim.exchange.training_state import start_state
from resim.exchange.weights import read_weights
from resim.model.encoder import ModelConfig
from resim.model.resim import ReSim
from resim.runs.checkpoints import load_checkpoint, save_checkpoint
from resim.runs.config import Recipe, RunConfig
from resim.training.starting import Start, list_counts, list_parts, load_start, read_start
from resim.training.step import make_stepper

Captured = pytest.CaptureFixture[str]
RESNET18 = "resnet18-f37072fd.pth"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch.hub's folder of files, empty; whatever is not in it cannot be downloaded."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def no_network(url: str, path: Path) -> None:
        raise URLError("no network")

    monkeypatch.setattr(sources, "download", no_network)
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def cached(cache: Path) -> dict[str, Tensor]:
    """Its ResNet-18."""
    state = torchvision.models.resnet18().state_dict()
    torch.save(state, cache / RESNET18)
    return state


def begin(recipe: Recipe, word: str | Path) -> Start:
    start = read_start(RunConfig(start_from=str(word)), recipe)
    assert start is not None
    return start


# -- what is named


def test_torchvision_keeps_its_files_where_torch_hub_does(cache: Path) -> None:
    best = torchvision_file("torchvision:resnet50")
    assert (best.version, best.path) == ("IMAGENET1K_V2", cache / "resnet50-11ad3fa6.pth")
    first = torchvision_file("torchvision:resnet50:IMAGENET1K_V1")
    assert first.path == cache / "resnet50-0676ba61.pth"
    assert first.url == "https://download.pytorch.org/models/resnet50-0676ba61.pth"
    assert not is_at_hand("torchvision:resnet50")


@pytest.mark.slow
def test_weights_that_are_not_in_the_cache_are_downloaded_into_it(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    urls = []

    def download(url: str, path: Path) -> None:
        urls.append(url)
        torch.save(torchvision.models.resnet18().state_dict(), path)

    monkeypatch.setattr(sources, "download", download)
    for _ in range(2):
        weights = read_weights("torchvision:resnet18")
        assert (weights.path, weights.config.backbone) == (cache / RESNET18, "resnet18")
        assert weights.origin == "torchvision's resnet18, IMAGENET1K_V1"
    assert urls == [f"https://download.pytorch.org/models/{RESNET18}"]
    assert capsys.readouterr().out.count("downloading") == 1


def test_without_a_network_the_file_can_be_fetched_by_hand(cache: Path) -> None:
    with pytest.raises(UserError) as caught:
        locate("torchvision:resnet50")
    message = str(caught.value)
    assert message.startswith(
        "torchvision:resnet50: https://download.pytorch.org/models/resnet50-11ad3fa6.pth cannot be"
    )
    assert message.endswith(f"(no network): download it by hand to {cache / 'resnet50-11ad3fa6.pth'}")
    torch.save({}, cache / "resnet50-0676ba61.pth")
    with pytest.raises(UserError, match=r"or use torchvision:resnet50:IMAGENET1K_V1, which is in the cache$"):
        locate("torchvision:resnet50")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("nowhere.pth", f"possible are {NAMES}"),
        ("resnet50", "did you mean torchvision:resnet50?"),
        ("imagenet", "did you mean torchvision:resnet50?"),
        ("torchvison:resnet50", "did you mean torchvision:resnet50?"),
        ("tv:resnet18", "did you mean torchvision:resnet18?"),
        ("timm:resnet50", "save the network's state_dict to a file first"),
        ("torchvision:resnet51", "no ResNet 'resnet51': one of resnet101, resnet152, resnet18, resnet34, resnet50"),
        ("torchvision:vit_b_16", "no ResNet 'vit_b_16': one of"),
        ("torchvision:", "no ResNet '': one of"),
        ("torchvision:resnet50:V3", "resnet50 has no weights 'V3': one of IMAGENET1K_V1, IMAGENET1K_V2"),
    ],
)
def test_an_unknown_source_is_refused(cache: Path, word: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_weights(word)
    assert str(caught.value).startswith(f"{word}: ")
    assert message in str(caught.value)


@pytest.mark.slow
def test_a_file_of_that_name_has_the_precedence(
    cached: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(torchvision.models.resnet34().state_dict(), "torchvision:resnet18")
    assert read_weights("torchvision:resnet18").config.backbone == "resnet34"


def test_random_names_no_file(cache: Path) -> None:
    for word in ("random", "random:quick"):
        assert not is_at_hand(word)
        with pytest.raises(UserError, match=rf"{word}: is an untrained network, which has no file"):
            read_weights(word)
    assert untrained_model("random") is None
    assert untrained_model("random:quick") == recipes.quick().model
    with pytest.raises(UserError, match="no recipe 'slow': one of resim-fpn"):
        untrained_model("random:slow")


def test_encoders_are_called_by_the_word(cached: dict[str, Tensor]) -> None:
    ours, new = load_encoders(["torchvision:resnet18", "random"])
    assert (ours.name, new.name) == ("torchvision:resnet18", "random")
    assert new.config.backbone == "resnet18"
    assert torch.equal(ours.encoder.backbone.get_parameter("conv1.weight"), cached["conv1.weight"])


def test_an_untrained_network_gives_a_detector_its_backbone() -> None:
    quick = recipes.quick().model
    start = resolve(DetectorConfig(), None, quick)
    assert (start.backbone, start.fpn_width) == ("resnet18", quick.fpn_width)
    assert resolve(DetectorConfig(), None, dataclasses.replace(quick, levels=())).fpn_width == 256
    with pytest.raises(UserError, match="an untrained resnet18, the detector's backbone is resnet50"):
        resolve(DetectorConfig(backbone="resnet50"), None, quick)


def test_names_of_a_comparison(tmp_path: Path) -> None:
    for text, name in (
        ("torchvision:resnet50", "torchvision-resnet50"), ("random:quick", "random-quick"), ("random", "random"),
        (f"{tmp_path}/runs/a", "a"), ("imagenet=torchvision:resnet50", "imagenet"),
    ):  # fmt: skip
        assert CompareStart.parse(text).name == name
    assert CompareStart.parse("imagenet=torchvision:resnet50").weights == "torchvision:resnet50"


@pytest.mark.parametrize(
    "words",
    [
        ["pretrain", "IMAGES", "--recipe", "quick", "--batch-size", "2", "--group-size", "2", "--start-from", "mine"],
        ["import", "mine"],
        ["export", "mine", "--to", "torchvision"],
        ["probe", "mine", "IMAGES"],
        ["similarity", "IMAGES", "--checkpoint", "mine"],
        ["explore", "mine", "--images", "IMAGES"],
        ["detect", "train", "DATA", "--init", "mine"],
        ["compare", "DATA", "--init", "mine", "random", "--out", "OUT", "--val", "DATA"],
    ],
    ids=lambda words: words[0],
)
def test_every_verb_takes_the_same_sources(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    from detection_data import thing, write_coco

    data = write_coco(tmp_path / "data", [thing(1, 1, 7, (5, 5, 40, 40))], num_images=1)
    images = tmp_path / "photos"
    images.mkdir()
    for name in "abcd":
        Image.new("RGB", (40, 40)).save(images / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    names = {"IMAGES": str(images), "DATA": str(data), "OUT": "out"}
    assert main([names.get(word, word) for word in words]) == 2
    output = capsys.readouterr().err
    assert f"mine: cannot be read (No such file or directory); possible are {NAMES}" in output
    assert output.count("\n") == 1


@pytest.mark.parametrize(
    "words", [["pretrain"], ["probe"], ["similarity"], ["explore"], ["compare"], ["detect", "train"]]
)
def test_every_help_has_the_same_sentence(capsys: Captured, words: list[str]) -> None:
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    output = capsys.readouterr().out
    assert NAMES in " ".join(output.replace("│", " ").split())


# -- what fits


@pytest.mark.slow
def test_a_backbone_of_torchvisions_and_all_else_new(cached: dict[str, Tensor]) -> None:
    start = begin(SMALL, "torchvision:resnet18")
    model, fresh = start.state["model"], ReSim(SMALL.model, seed=SMALL.optim.seed).state_dict()
    for name, value in model.items():
        rest = name.partition("backbone.")[2]
        assert torch.equal(value, cached[rest] if rest else fresh[name]), name
    assert start.line == (
        f"starts from torchvision:resnet18 ({read_weights('torchvision:resnet18').path}: ResNet with torchvision's "
        "names, as torchvision and timm save it (resnet18)): loaded backbone; new, from seed 0: head, FPN, key encoder "
        "(a copy of the query), queue (8 keys, random: the file has none), momentum (0); left over: fc (2)"
    )
    assert start.state["imported"]["origin"] == "torchvision's resnet18, IMAGENET1K_V1"


def test_another_backbone_is_refused(cached: dict[str, Tensor]) -> None:
    wanted = r"torchvision:resnet18: contains a resnet18, the recipe's backbone is resnet34: set --backbone resnet18"
    with pytest.raises(UserError, match=wanted):
        begin(small(backbone="resnet34"), "torchvision:resnet18")
    with pytest.raises(UserError, match="random:resim-fpn: is a resnet50, the recipe's backbone is resnet18"):
        read_start(RunConfig(start_from="random:resim-fpn"), SMALL)
    assert read_start(RunConfig(start_from="random:quick"), SMALL) is None
    assert read_start(RunConfig(start_from="random"), SMALL) is None


def changed(**fields: object) -> Recipe:
    return dataclasses.replace(SMALL, model=dataclasses.replace(SMALL.model, **fields))


@pytest.mark.slow
def test_the_same_network_is_loaded_completely(tmp_path: Path) -> None:
    model = trained(SMALL)
    own_checkpoint(tmp_path / "last.pt", SMALL, model)
    start = begin(SMALL, tmp_path / "last.pt")
    assert all(torch.equal(value, start.state["model"][name]) for name, value in model.state_dict().items())
    assert "loaded backbone, head, FPN, key encoder, queue (8 keys); new, from seed 0: momentum (0)" in start.line
    assert start.line.endswith("left over: nothing")
    assert "imported" not in start.state  # what we trained from random weights is nobody else's


@pytest.mark.slow
def test_levels_that_the_file_has_are_loaded_and_others_are_new(tmp_path: Path) -> None:
    p4, p3 = SMALL.model.levels
    model = trained(changed(levels=(p4,)))
    own_checkpoint(tmp_path / "last.pt", changed(levels=(p4,)), model)
    start = begin(changed(levels=(p4, p3)), tmp_path / "last.pt")
    assert "loaded backbone, head, FPN's lateral5 lateral4 output4, key encoder" in start.line
    assert "new, from seed 0: FPN's lateral3 output3" in start.line
    state, fresh = start.state["model"], ReSim(SMALL.model, seed=0).state_dict()
    assert torch.equal(state["query.fpn.output4.weight"], model.query.get_parameter("fpn.output4.weight"))
    for side in ("query", "key"):
        assert torch.equal(state[f"{side}.fpn.output3.weight"], fresh["query.fpn.output3.weight"])


@pytest.mark.slow
def test_another_width_or_head_starts_new_and_so_does_the_queue(tmp_path: Path) -> None:
    own_checkpoint(tmp_path / "last.pt", SMALL)
    start = begin(changed(fpn_width=16), tmp_path / "last.pt")
    assert "loaded backbone, head, key encoder, queue (8 keys); new, from seed 0: FPN, momentum" in start.line
    start = begin(changed(dim=16), tmp_path / "last.pt")
    assert "loaded backbone, head's 0, FPN, key encoder; new, from seed 0: head's 2, " in start.line
    assert "queue (8 keys, random: the file's 8 keys belong to another head)" in start.line
    assert "left over: query.head (2)" in start.line
    assert torch.equal(start.state["model"]["queue"], ReSim(changed(dim=16).model, seed=0).queue)


def test_a_queue_of_another_size() -> None:
    queue, position = torch.arange(5.0)[:, None].expand(5, 2), torch.tensor(2)  # the oldest is 2, the newest is 1

    def fit(size: int, head: bool = True) -> tuple[list[float] | None, int | None, str]:
        rows, at, what = fit_queue(queue, position, ModelConfig(queue_size=size, dim=2), head)
        return (None if rows is None else rows[:, 0].tolist()), (None if at is None else int(at)), what

    assert fit(5) == ([0, 1, 2, 3, 4], 2, "5 keys")
    assert fit(3) == ([4, 0, 1], 0, "the newest 3 of 5 keys")
    assert fit(8) == (None, None, "8 keys, random: the file has only 5")
    assert fit(5, head=False) == (None, None, "5 keys, random: the file's 5 keys belong to another head")
    assert fit_queue(None, None, ModelConfig(queue_size=4), True)[2] == "4 keys, random: the file has none"
    assert fit_queue(queue[:0], position, ModelConfig(queue_size=4, dim=2), True)[2].endswith("the file has none")


@pytest.mark.parametrize("position", [torch.tensor([1, 2]), torch.tensor(float("nan")), torch.tensor(2j)])
def test_a_position_that_is_no_number_of_a_key_is_not_used(position: torch.Tensor) -> None:
    queue = torch.arange(5.0)[:, None].expand(5, 2)
    _, at, what = fit_queue(queue, position, ModelConfig(queue_size=5, dim=2), True)
    assert (at, what) == (torch.tensor(0), "5 keys")


@pytest.mark.slow
@pytest.mark.parametrize(("size", "message"), [(4, "the newest 4 of 8 keys"), (16, "random: the file has only 8")])
def test_the_queue_of_a_start_may_differ(tmp_path: Path, size: int, message: str) -> None:
    model = trained(SMALL)
    model.queue_position.fill_(6)
    own_checkpoint(tmp_path / "last.pt", SMALL, model)
    start = begin(changed(queue_size=size), tmp_path / "last.pt")
    assert message in start.line
    expected = model.queue[2:6] if size == 4 else ReSim(changed(queue_size=16).model, seed=0).queue
    assert torch.equal(start.state["model"]["queue"], expected)
    assert start.state["model"]["queue_position"] == 0


@pytest.mark.slow
def test_momentum_goes_to_its_parameters_whatever_group_they_are_in(tmp_path: Path) -> None:
    model = trained(SMALL)
    named = dict(model.query.named_parameters())
    momentum = {name: torch.randn_like(value) for name, value in named.items()}
    own_checkpoint(tmp_path / "last.pt", SMALL, model)
    state = load_checkpoint(tmp_path / "last.pt")
    state["optimizer"]["state"] = {i: {"momentum_buffer": momentum[name]} for i, name in enumerate(named)}
    save_checkpoint(tmp_path / "last.pt", state)
    imported, _ = start_state(tmp_path / "last.pt", SMALL)
    with start_processes("cpu") as processes:
        stepper = make_stepper(SMALL.model, SMALL.optim, processes, precision="float32")
    parameters = list(stepper.model.query.parameters())
    groups = [{"params": parameters[1::2]}, {"params": parameters[::2]}]
    stepper = dataclasses.replace(stepper, optimizer=torch.optim.SGD(groups, lr=0.1, momentum=0.9))
    load_start(stepper, imported.state)
    for name, parameter in stepper.model.query.named_parameters():
        assert torch.equal(stepper.optimizer.state[parameter]["momentum_buffer"], momentum[name]), name


def test_parts_and_counts_in_words() -> None:
    names = ["backbone.conv1.weight", "head.0.weight", "head.0.bias", "fpn.lateral5.0.weight", "convs.C4.weight"]
    assert list_parts(names, without=[]) == ["backbone", "head", "FPN", "convolutions of C levels"]
    assert list_parts(names[1:4], without=["head.2.weight"]) == ["head's 0", "FPN"]
    assert list_counts(["module.fc.weight", "module.fc.bias", "rpn.x.y"]) == ["fc (2)", "rpn (1)"]
    assert list_counts([f"{name}.weight" for name in "abcde"])[-1] == "... 5 in all"
    assert list_counts([]) == []


# -- a run


@pytest.mark.slow
def test_a_run_starts_from_weights_and_says_so(cached: dict[str, Tensor], tmp_path: Path, capsys: Captured) -> None:
    images, out = tmp_path / "photos", tmp_path / "run"
    images.mkdir()
    for number in range(4):
        Image.effect_noise((48, 48), 60.0 + number).convert("RGB").save(images / f"{number}.png")
    words = [
        "pretrain", str(images), "--recipe", "quick", "--levels", "P4:window=32,step=16", "--image-size", "64",
        "--fpn-width", "16", "--dim", "16", "--group-size", "4", "--batch-size", "4", "--epochs", "2", "--workers", "0",
        "--device", "cpu", "--precision", "float32", "--picture-every", "0", "--queue-size", "4", "--out", str(out),
    ]  # fmt: skip
    begun = [*words, "--start-from", "torchvision:resnet18", "--stop-after", "1"]
    assert main(begun) == 0
    assert "starts from torchvision:resnet18" in capsys.readouterr().out
    config = json.loads((out / "config.json").read_text())
    assert config["run"]["start_from"] == "torchvision:resnet18"
    assert config["start"]["left_over"] == ["fc.weight", "fc.bias"]
    assert len(config["start"]["loaded"]) == 120
    assert load_checkpoint(out / "checkpoints" / "last.pt")["imported"]["origin"].startswith("torchvision's resnet18")
    # it is resumed without naming them, and not with others
    assert main([*words, "--resume", "--start-from", "random"]) == 2
    output = capsys.readouterr().err
    assert f"--start-from random: the run in {out} started from torchvision:resnet18" in output
    (out / "checkpoints" / "last.pt").unlink()  # as one that was stopped before its first checkpoint
    assert main([*words, "--resume", "--stop-after", "1"]) == 0
    assert "starts from torchvision:resnet18" in capsys.readouterr().out
