"""The report: one self-contained page on the content of run folders."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from needs import need
from report.reader import Page, is_self_contained
from resim import recipes
from resim.cli.main import main
from resim.errors import UserError
from resim.report.page import MAX_BYTES
from resim.report.report import report
from resim.report.run_files import read_runs
from resim.report.similarity_section import central_box
from resim.scenes.scenes import write_scenes

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TINY = [
    "--recipe", "quick", "--batch-size", "4", "--group-size", "4", "--image-size", "64", "--levels",
    "P4:window=32,step=16", "--queue-size", "8", "--epochs", "1", "--workers", "0", "--device", "cpu", "--precision",
    "float32",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-training of three steps, on scenes."""
    folder = tmp_path_factory.mktemp("reported")
    write_scenes(folder / "scenes", 12, width=96, height=72)
    assert main(["pretrain", str(folder / "scenes" / "images"), *TINY, "--out", str(folder / "first")]) == 0
    return folder / "first"


def detector(folder: Path, ap: float) -> Path:
    """A folder such as `resim detect train` writes."""
    (folder / "pictures").mkdir(parents=True)
    config = {"kind": "detect", "recipe": {"name": "quick", "detector": {"backbone": "resnet18"}}, "init": "runs/first"}
    (folder / "config.json").write_text(json.dumps(config))
    lines = [
        {"step": step, "images": 30, "scores": {"bbox": {"AP": ap * step / 200, "AP75": None}}, "per_class": {}}
        for step in (100, 200)
    ]
    (folder / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 300, "sc')
    Image.new("RGB", (300, 200)).save(folder / "pictures" / "detections.png")
    return folder


@pytest.mark.slow
def test_a_pretraining_is_reported_from_its_folder(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "first"))
    (copy / "probes.jsonl").unlink(missing_ok=True)
    page = Page(report([copy], tmp_path / "report.html"))
    assert is_self_contained(page)
    for title in (
        "Verdict", "Runs", "Training curves", "Corresponding windows", "Similarity before and after pre-training",
    ):  # fmt: skip
        assert title in page.words
    for title in ("Probes", "Detection"):
        assert title not in page.words
    assert page.tags.count("svg") == 6
    # the sheet of windows, and for each of three images on one level: the image, untrained, trained
    assert page.tags.count("img") == 1 + 3 * 3
    assert f"1. Better than untrained? not measured: run resim probe {copy} random DATA" in page.text
    assert "chance (11 %)" in page.words  # 1 / 9, with a queue of 8
    assert "chance (5.9 %)" in page.words  # 1 / 17, with 4 x 2 x 2 cells on P4
    assert "12 images of" in page.text
    assert len(page.source) < MAX_BYTES


@pytest.mark.slow
def test_several_runs_are_shown_together(run: Path, tmp_path: Path) -> None:
    second = Path(shutil.copytree(run, tmp_path / "second"))
    probe = {
        "kind": "probe",
        "test": {"source": "places", "images": 50},
        "networks": [
            {
                "name": name,
                "scores": {
                    "knn": {"C5": {"top1": 0.25 + i / 10, "interval": [0.2, 0.4], "chance": 0.01, "n": 50, "k": 20}},
                    "correspondence": {
                        "scale": {"P4": {"accuracy": 0.5, "interval": [0.4, 0.6], "chance": 0.05, "windows": 9,
                                         "median_error_px": 11.4}}
                    },
                    "health": {"P4": {"rank": 12.5, "spread": 0.5, "alignment": None, "uniformity": -1.5, "n": 50}},
                },
            }
            for i, name in enumerate(("second", "random"))
        ],
    }  # fmt: skip
    (second / "probe.json").write_text(json.dumps(probe))
    lines = [{"step": s, "epoch": s, "knn/C5": 0.1 + s / 10, "rank/P4": 3.0, "queue/age": s} for s in range(3)]
    (second / "probes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    comparison = {
        "kind": "compare", "seeds": [0, 1], "scores": {"a": {"bbox": {"AP": [0.1, 0.2]}}, "b": {"bbox": {"AP": [0.3]}}},
        "differences": [
            {"first": "a", "second": "b", "value": -0.15, "low": -0.2, "high": 0.01},
            {"first": "a", "second": "c", "value": 0.15, "low": 0.1, "high": 0.21},
        ],
    }  # fmt: skip
    (tmp_path / "compared").mkdir()
    (tmp_path / "compared" / "compare.json").write_text(json.dumps(comparison))
    runs = [run, second, detector(tmp_path / "det", 0.25), tmp_path / "compared"]
    page = Page(report(runs, tmp_path / "report.html"))
    assert is_self_contained(page)
    for words in (
        "All pre-trainings", "25.0 [20.0, 40.0]", "35.0 [20.0, 40.0]", "50.0 [40.0, 60.0] 11 px", "12.50",
        "kNN, k = 20", "second, during training", "Age of the oldest key in the queue", "25.0", "runs/first",
        "15.00 ± 7.07", "30.00", "a minus b", "-15.00", "[-20.00, +1.00]", "within noise", "[+10.00, +21.00]",
    ):  # fmt: skip
        assert words in page.words, words
    assert page.words.count("within noise") == 1
    assert "bbox AP" in page.text
    # two sheets of windows, 3 images x (image, untrained, two trained), one sheet of detections
    assert page.tags.count("img") == 2 + 3 * 4 + 1


@pytest.mark.slow
def test_images_that_no_longer_exist_can_be_replaced(run: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(run, tmp_path / "moved"))
    config = json.loads((moved / "config.json").read_text())
    sources = config["data"]["sources"]
    config["data"]["sources"] = [str(tmp_path / "gone")]
    (moved / "config.json").write_text(json.dumps(config))
    page = Page(report([moved], tmp_path / "a.html"))
    assert "name others with --images" in page.text
    assert main(["report", str(moved), "-o", str(tmp_path / "b.html"), "--images", *sources]) == 0
    assert Page(tmp_path / "b.html").tags.count("img") == 1 + 3 * 3


@pytest.mark.slow
def test_images_that_cannot_be_decoded_are_skipped(run: Path, tmp_path: Path) -> None:
    for i in range(8):
        (tmp_path / f"{i}.jpg").write_bytes(b"no picture")
    Image.new("RGB", (64, 48), (200, 100, 0)).save(tmp_path / "good.png")
    page = Page(report([run], tmp_path / "a.html", images=[tmp_path]))
    assert page.tags.count("img") == 1 + 3
    assert "good.png" in page.text


@pytest.mark.slow
def test_a_diverged_run_is_reported_without_its_heat_maps(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "first"))
    last = copy / "checkpoints" / "last.pt"
    content = torch.load(last, weights_only=True)
    content["model"]["query.backbone.layer1.0.conv1.weight"].fill_(float("nan"))
    torch.save(content, last)
    page = Page(report([copy], tmp_path / "report.html"))
    assert page.tags.count("img") == 1 + 3 * 2
    assert re.search(r"first is omitted: \S+: the network's features are not finite", page.text)


@pytest.mark.slow
def test_the_same_runs_give_the_same_page(run: Path, tmp_path: Path) -> None:
    pages = [report([run], tmp_path / name).read_bytes() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]


def test_runs_of_the_same_name_are_distinguished_by_their_parents(tmp_path: Path) -> None:
    paths = [detector(tmp_path / name / "run", 0.1) for name in ("a", "b")]
    assert [run.name for run in read_runs(paths)] == ["a/run", "b/run"]
    paths = [detector(tmp_path / name / "a" / "run", 0.1) for name in ("x", "y")]
    other = detector(tmp_path / "other", 0.1)
    assert [run.name for run in read_runs([*paths, other])] == ["x/a/run", "y/a/run", "other"]
    with pytest.raises(UserError, match="is named twice"):
        read_runs([other, tmp_path / "a" / ".." / "other"])


def test_the_region_is_the_centre_of_the_image() -> None:
    assert central_box(100, 80) == (26.0, 16.0, 74.0, 64.0)
    assert central_box(30, 80) == (0.0, 16.0, 30.0, 64.0)


@pytest.mark.slow
def test_a_folder_that_cannot_be_reported_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    broken = Path(shutil.copytree(run, tmp_path / "broken"))
    (broken / "config.json").write_text("{")
    lines = Path(shutil.copytree(run, tmp_path / "lines"))
    (lines / "probes.jsonl").write_text("oops\n{}\n")
    out = tmp_path / "report.html"
    for words, message in (
        ([], "no run: name at least one folder"),
        ([str(tmp_path / "none")], "none: is not a folder; name the folder of a run"),
        ([str(run / "config.json")], "is not a folder; name the folder of a run"),
        ([str(tmp_path / "empty")], "contains no run"),
        ([str(broken)], "config.json: is damaged"),
        ([str(lines)], "probes.jsonl: line 1 is damaged"),
        ([str(run), "--images", str(tmp_path / "none")], "there is no such folder"),
        ([str(run), "-o", str(tmp_path / "report.pdf")], "must end in .html"),
        ([str(run), "--seed", "-1"], "--seed -1"),
        ([str(run), "-o", str(run / "config.json" / "report.html")], "cannot be written to"),
    ):
        assert main(["report", "-o", str(out), *words]) == 2
        line = capsys.readouterr().err
        assert message in line
        assert line.count("\n") == 1
    assert not out.exists()


def test_a_run_that_has_just_begun_is_reported(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    config = {"recipe": recipes.quick().to_json(), "run": {}, "data": {"sources": ["x"]}}
    (tmp_path / "new" / "config.json").write_text(json.dumps(config))
    page = Page(report([tmp_path / "new"], tmp_path / "a.html"))
    assert "Runs" in page.words
    assert "Training curves" not in page.words


def test_the_runs_inside_a_folder_without_a_run_are_named(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    with pytest.raises(
        UserError, match=f"contains no run \\(2 runs inside it: name them: {tmp_path}/a {tmp_path}/b\\)"
    ):
        report([tmp_path], tmp_path / "a.html")


# -- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = need("playwright.sync_api", "the report is shown by a browser without errors", "browser")
    if CHROMIUM is None:
        pytest.skip("not verified: the report is shown by a browser without errors: install chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
def test_the_page_fits_any_screen(run: Path, tmp_path: Path, browser: Any, scheme: str, width: int) -> None:
    path = report([run, detector(tmp_path / "det", 0.25)], tmp_path / "report.html")
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
    page = context.new_page()
    requested: list[str] = []
    page.on("request", lambda request: request.url.startswith(("data:", "file:")) or requested.append(request.url))
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    paper, ink = (
        [int(value) for value in re.findall(r"\d+", page.evaluate(f"getComputedStyle(document.body).{name}"))]
        for name in ("backgroundColor", "color")
    )
    assert (sum(paper) > sum(ink)) == (scheme == "light")
    label = page.locator("svg text").first
    assert label.evaluate("e => getComputedStyle(e).fill") == page.evaluate("getComputedStyle(document.body).color")
    # px: text of a diagram must be readable on a phone
    height = label.evaluate("e => e.getBoundingClientRect().height")
    assert height >= 9
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert requested == []
    context.close()
