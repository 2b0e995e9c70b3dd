"""The report: one page that needs nothing else, of whatever runs hold."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from needs import need
from resim import recipes
from resim.cli.main import main
from resim.errors import UserError
from resim.report.curves import INK, Line, diagram, thinned
from resim.report.page import (
    MOST_BYTES,
    Facts,
    Folded,
    Heading,
    Picture,
    Section,
    Table,
    Text,
    write_report,
)
from resim.report.report import central_box, report
from resim.report.runs import read_runs
from resim.scenes.scenes import write_scenes

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NEVER_CLOSED = {"meta", "img", "br", "link"}
TINY = [
    "--recipe", "quick", "--batch-size", "4", "--group-size", "4", "--image-size", "64", "--levels",
    "P4:window=32,step=16", "--queue-size", "8", "--epochs", "1", "--workers", "0", "--device", "cpu", "--precision",
    "float32",
]  # fmt: skip


class Page(html.parser.HTMLParser):
    """Reads a page: its text, its attributes, and whether every element is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in NEVER_CLOSED:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def needs_nothing(page: Page) -> bool:
    """No script, and no address but those of pictures within the page and of places on it."""
    addresses = [value for _, name, value in page.attributes if name in ("src", "href", "xlink:href", "srcset")]
    inside = all(address.startswith(("data:image/jpeg;base64,", "#")) for address in addresses)
    return (
        inside
        and "script" not in page.tags
        and "@import" not in page.source
        and not re.search(r"url\((?!['\"]?#)", page.source)
    )


# -- the page


def test_every_part_is_on_the_page_and_cannot_break_it(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>&\"'"
    parts = (
        Text(text=evil),
        Heading(text=evil),
        Facts(rows=((evil, evil),)),
        Table(columns=("a", evil), rows=((evil, "2"),), caption=evil),
        Picture(picture=Image.new("RGB", (40, 30), (200, 10, 10)), caption=evil, least_px=900),
        Folded(title=evil, text=evil),
    )
    sections = [Section(title=evil, parts=parts), Section(title="empty, left out", parts=())]
    page = Page(write_report(tmp_path / "a.html", evil, sections, lead=evil))
    assert needs_nothing(page)
    assert page.words.count(evil) == 15
    assert "left out" not in page.text
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]


@pytest.mark.slow
def test_pictures_are_made_smaller_until_the_page_is(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (900, 1600, 3), dtype=np.uint8)
    parts = tuple(Picture(picture=Image.fromarray(noise), caption=str(i)) for i in range(12))
    path = write_report(tmp_path / "a.html", "a", [Section(title="a", parts=parts)])
    assert path.stat().st_size < MOST_BYTES
    page = Page(path)
    assert page.tags.count("img") == 12


def test_what_cannot_be_small_enough_is_refused(tmp_path: Path) -> None:
    parts = (Folded(title="long", text="a" * MOST_BYTES),)
    with pytest.raises(UserError, match="would be larger than 5 MB: report fewer runs"):
        write_report(tmp_path / "a.html", "a", [Section(title="a", parts=parts)])
    assert list(tmp_path.iterdir()) == []


# -- diagrams


def test_a_diagram_takes_the_colours_of_the_page(tmp_path: Path) -> None:
    x = np.arange(1000.0)
    lines = [Line(label="total", x=x, y=np.sin(x), colour=INK), Line(label="a<b", x=x, y=np.cos(x))]
    drawn = diagram("Losses & more", "nats", "step", lines)
    assert "currentColor" in drawn
    assert "var(--rule)" in drawn
    assert "Losses &amp; more" in drawn
    assert "a&lt;b" in drawn
    assert "#000000" not in drawn
    assert len(drawn) < 60_000
    (tmp_path / "a.html").write_text(f"<body>{drawn}</body>", encoding="utf-8")
    assert needs_nothing(Page(tmp_path / "a.html"))


def test_numbers_at_the_ticks_are_whole() -> None:
    drawn = diagram("Rate", "learning rate", "epoch", [Line(label="", x=np.arange(5.0), y=np.linspace(0, 0.03, 5))])
    assert {"0.000", "0.005", "0.025", "0.030"} <= set(re.findall(r">([\d.]+)</text>", drawn))


def test_diagrams_on_one_page_do_not_share_names() -> None:
    x = np.arange(5.0)
    names = [
        set(re.findall(r'id="([^"]+)"', diagram(title, "nats", "step", [Line(label="", x=x, y=x)])))
        for title in ("one", "two")
    ]
    assert all(names)
    assert not names[0] & names[1]


def test_long_curves_are_thinned_to_means_of_stretches() -> None:
    x = np.arange(480.0)
    y = np.where(x % 2 == 0, 1.0, 3.0)
    y[10] = np.nan
    y[20:22] = np.nan
    thin_x, thin_y = thinned(x, y)
    np.testing.assert_allclose(thin_x, np.arange(240) * 2 + 0.5)
    expected = np.full(240, 2.0)
    expected[5], expected[10] = 3.0, np.nan
    np.testing.assert_allclose(thin_y, expected)
    short = thinned(x[:240], y[:240])
    np.testing.assert_array_equal(short[1], y[:240])


# -- runs


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
    assert needs_nothing(page)
    for title in ("Verdict", "What ran", "Curves", "Matched windows", "Similarity before and after"):
        assert title in page.words
    for title in ("Probes", "Detection"):
        assert title not in page.words
    assert page.tags.count("svg") == 6
    # the sheet of windows, and of three images a row: itself, untrained, trained, on the one level
    assert page.tags.count("img") == 1 + 3 * 3
    assert f"1. Better than untrained? not measured: resim probe {copy} random DATA measures it" in page.text
    assert "chance (11 %)" in page.words  # of the queue of 8
    assert "chance (5.9 %)" in page.words  # of 4 x 2 x 2 cells on P4
    assert "12 images of" in page.text
    assert len(page.source) < MOST_BYTES


@pytest.mark.slow
def test_runs_are_shown_beside_each_other(run: Path, tmp_path: Path) -> None:
    second = Path(shutil.copytree(run, tmp_path / "second"))
    found = {
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
    (second / "probe.json").write_text(json.dumps(found))
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
    assert needs_nothing(page)
    for words in (
        "Pre-trainings together", "25.0 [20.0, 40.0]", "35.0 [20.0, 40.0]", "50.0 [40.0, 60.0] 11 px", "12.50",
        "kNN, k 20", "second, while it ran", "Age of the oldest key in the queue", "25.0", "runs/first", "15.00 ± 7.07",
        "30.00", "a minus b", "-15.00", "[-20.00, +1.00]", "within the noise", "[+10.00, +21.00]",
    ):  # fmt: skip
        assert words in page.words, words
    assert page.words.count("within the noise") == 1
    assert "bbox AP" in page.text
    # an untrained network, and both trained ones
    assert page.tags.count("img") == 2 + 3 * 4 + 1


@pytest.mark.slow
def test_images_that_are_gone_are_named_anew(run: Path, tmp_path: Path) -> None:
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
def test_images_that_cannot_be_decoded_are_passed_over(run: Path, tmp_path: Path) -> None:
    for i in range(8):
        (tmp_path / f"{i}.jpg").write_bytes(b"no picture")
    Image.new("RGB", (64, 48), (200, 100, 0)).save(tmp_path / "good.png")
    page = Page(report([run], tmp_path / "a.html", images=[tmp_path]))
    assert page.tags.count("img") == 1 + 3
    assert "good.png" in page.text


@pytest.mark.slow
def test_a_run_that_came_to_nothing_is_reported_without_its_heat_maps(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "first"))
    last = copy / "checkpoints" / "last.pt"
    content = torch.load(last, weights_only=True)
    content["model"]["query.backbone.layer1.0.conv1.weight"].fill_(float("nan"))
    torch.save(content, last)
    page = Page(report([copy], tmp_path / "report.html"))
    assert page.tags.count("img") == 1 + 3 * 2
    assert re.search(r"first is left out: \S+: the network gives features that are not finite", page.text)


@pytest.mark.slow
def test_the_same_runs_give_the_same_page(run: Path, tmp_path: Path) -> None:
    pages = [report([run], tmp_path / name).read_bytes() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    paths = [detector(tmp_path / name / "run", 0.1) for name in ("a", "b")]
    assert [run.name for run in read_runs(paths)] == ["a/run", "b/run"]
    paths = [detector(tmp_path / name / "a" / "run", 0.1) for name in ("x", "y")]
    other = detector(tmp_path / "other", 0.1)
    assert [run.name for run in read_runs([*paths, other])] == ["x/a/run", "y/a/run", "other"]
    with pytest.raises(UserError, match="is named twice"):
        read_runs([other, tmp_path / "a" / ".." / "other"])


def test_the_region_is_the_middle_of_the_image() -> None:
    assert central_box(100, 80) == (26.0, 16.0, 74.0, 64.0)
    assert central_box(30, 80) == (0.0, 16.0, 30.0, 64.0)


@pytest.mark.slow
def test_what_cannot_be_reported(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    broken = Path(shutil.copytree(run, tmp_path / "broken"))
    (broken / "config.json").write_text("{")
    lines = Path(shutil.copytree(run, tmp_path / "lines"))
    (lines / "probes.jsonl").write_text("oops\n{}\n")
    out = tmp_path / "report.html"
    for words, told in (
        ([], "no run: name at least one folder"),
        ([str(tmp_path / "none")], "none: is no folder of a run"),
        ([str(run / "config.json")], "is no folder of a run"),
        ([str(tmp_path / "empty")], "holds no run"),
        ([str(broken)], "config.json: is damaged"),
        ([str(lines)], "probes.jsonl: line 1 is damaged"),
        ([str(run), "--images", str(tmp_path / "none")], "there is no such folder"),
        ([str(run), "-o", str(tmp_path / "report.pdf")], "must end in .html"),
        ([str(run), "--seed", "-1"], "--seed -1"),
        ([str(run), "-o", str(run / "config.json" / "report.html")], "cannot be written to"),
    ):
        assert main(["report", "-o", str(out), *words]) == 2
        line = capsys.readouterr().err
        assert told in line
        assert line.count("\n") == 1
    assert not out.exists()


def test_a_run_that_has_just_begun_is_reported(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    config = {"recipe": recipes.quick().to_json(), "run": {}, "data": {"sources": ["x"]}}
    (tmp_path / "new" / "config.json").write_text(json.dumps(config))
    page = Page(report([tmp_path / "new"], tmp_path / "a.html"))
    assert "What ran" in page.words
    assert "Curves" not in page.words


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
def test_it_is_read_on_any_screen(run: Path, tmp_path: Path, browser: Any, scheme: str, width: int) -> None:
    path = report([run, detector(tmp_path / "det", 0.25)], tmp_path / "report.html")
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: request.url.startswith(("data:", "file:")) or asked.append(request.url))
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    paper, ink = (
        [int(value) for value in re.findall(r"\d+", page.evaluate(f"getComputedStyle(document.body).{which}"))]
        for which in ("backgroundColor", "color")
    )
    assert (sum(paper) > sum(ink)) == (scheme == "light")
    label = page.locator("svg text").first
    assert label.evaluate("e => getComputedStyle(e).fill") == page.evaluate("getComputedStyle(document.body).color")
    # letters of a diagram on a phone, px
    height = label.evaluate("e => e.getBoundingClientRect().height")
    assert height >= 9
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert asked == []
    context.close()
