"""The explorer: the images of one folder only, regions at the position of the click, and the page in a browser."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from needs import need
from resim.cli.main import main
from resim.errors import UserError
from resim.exchange.encoders import load_encoders
from resim.scenes.scenes import draw_scene
from resim.similarity.explorer import Explorer
from resim.similarity.explorer_page import build_page, picker_value

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DEADLINE = 120_000  # ms, for responses that take one or two seconds


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scenes, one of them in a subfolder, and an image outside the folder."""
    parent = tmp_path_factory.mktemp("explored")
    (parent / "images" / "more").mkdir(parents=True)
    for index, name in enumerate(("images/a.png", "images/b.png", "images/more/c.png", "outside.png")):
        Image.fromarray(draw_scene(3, index, width=160, height=112).image).save(parent / name)
    return parent / "images"


@pytest.fixture(scope="module")
def explorer(folder: Path) -> Explorer:
    return Explorer(folder, load_encoders(["random:quick"]))


def test_images_are_named_within_the_folder_and_no_other_file_is_read(explorer: Explorer, folder: Path) -> None:
    assert explorer.names == ["a.png", "b.png", "more/c.png"]
    assert np.array_equal(explorer.photograph("more/c.png").pixels, np.asarray(Image.open(folder / "more" / "c.png")))
    for name in ("../outside.png", str(folder.parent / "outside.png"), "./a.png", "/etc/passwd", ""):
        with pytest.raises(UserError, match="is not one of the 3 images"):
            explorer.photograph(name)
        with pytest.raises(UserError, match="is not one of the 3 images"):
            explorer.heat_maps_html("a.png", (3.0, 4.0), [name], ["P4"])


def test_clicks_and_drags_are_converted_to_px(explorer: Explorer) -> None:
    assert explorer.region("a.png", [0.25, 0.5]) == (40.0, 56.0)
    assert explorer.region("a.png", [0.75, 0.5, 0.25, 0.0]) == (40.0, 0.0, 120.0, 56.0)
    assert explorer.region("a.png", [-1.0, 7.0]) == (0.0, 112.0)


@pytest.mark.slow
def test_there_is_a_heat_map_for_every_level_network_and_image(folder: Path) -> None:
    explorer = Explorer(folder, load_encoders(["random:quick", "random:quick"]))
    assert explorer.levels == ["P4", "P3", "C3", "C4", "C5"]
    page = explorer.heat_maps_html("a.png", (40.0, 56.0), ["b.png", "a.png", "more/c.png"], ["P4", "C5"])
    assert page.count("<section") == 2
    assert page.count("<img src=") == 2 * 2 * 3
    assert explorer.heat_maps_html("a.png", (40.0, 56.0), ["b.png"], ["P4"]) != explorer.heat_maps_html(
        "a.png", (90.0, 20.0), ["b.png"], ["P4"]
    )


def test_markup_in_names_is_escaped(tmp_path: Path) -> None:
    name = '"><img src=x onerror=alert(1)>.png'
    Image.new("RGB", (64, 64)).save(tmp_path / name)
    explorer = Explorer(tmp_path, load_encoders(["random:quick"]))
    shown = picker_value(explorer, name, [0.5, 0.5])
    assert not set('<>"') & set(shown["name"] + shown["band"])
    page = explorer.heat_maps_html(name, (3.0, 3.0), [], ["P4"])
    assert "onerror" in page
    assert "<img src=x" not in page


def test_names_that_are_not_utf8_can_be_selected(tmp_path: Path) -> None:
    for name in (b"a\xff.png", b"a\xfe.png"):
        Image.new("RGB", (64, 64)).save(os.fsdecode(bytes(tmp_path) + b"/" + name))
    explorer = Explorer(tmp_path, load_encoders(["random:quick"]))
    assert [name.encode() and name[:3] for name in explorer.names] == ["a\ufffd.", "a\ufffd."]
    assert len(set(explorer.names)) == 2
    assert explorer.photograph(explorer.names[1]).pixels.shape == (64, 64, 3)


def test_without_gradio_the_error_names_the_remedy(monkeypatch: pytest.MonkeyPatch, explorer: Explorer) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"pip install '\.\[explore\]' in resim's clone"):
        build_page(explorer)


def test_options_that_cannot_work_are_one_line(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = [
        (["random:quick", "--images", str(tmp_path / "none")], "--images"),
        (["random:quick", "--images", str(tmp_path)], "no images found"),
        (["random:quick", "--images", str(folder / "a.png")], "a.png: is no"),
        (["random:quick"], "--images"),
        ([str(tmp_path / "none.pt"), "--images", str(folder)], "none.pt"),
        (["random:quick", "--images", str(folder), "--port", "0"], "--port 0"),
        (["random:quick", "--images", str(folder), "--max-side", "4"], "--max-side 4"),
    ]
    for argv, message in refused:
        assert main(["explore", *argv]) == 2
        line = capsys.readouterr().err
        assert message in line
        assert line.count("\n") == 1


# -- the page


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """The address of `resim explore`, running in another process."""
    need("gradio", "`resim explore` serves its page", "explore")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "resim", "explore", "random:quick", "--images", str(folder), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        match = re.search(r"3 images of .* at (http://127\.0\.0\.1:\d+/)", line)
        if match is None:
            process.kill()
            raise AssertionError(f"no address was printed: {line}{process.communicate()[1]}")
        yield match[1]
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = need("playwright.sync_api", "the explorer responds to clicks in a browser", "browser")
    if CHROMIUM is None:
        pytest.skip("not verified: the explorer responds to clicks in a browser: install chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.mark.parametrize("file", ["/etc/passwd", "outside.png", "images/a.png", "images/../outside.png"])
def test_the_server_serves_no_file(address: str, folder: Path, file: str) -> None:
    path = file if file.startswith("/") else str(folder.parent / file)
    for form in ("gradio_api/file=", "file=", "gradio_api/proxy=", ""):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{address}{form}{path}", timeout=30)
        assert refused.value.code in (400, 403, 404)
        refused.value.close()


def test_only_this_machine_can_connect(address: str) -> None:
    port = int(address.rstrip("/").rpartition(":")[2])
    with pytest.raises(OSError):  # a server that listens on all addresses would accept this one
        socket.create_connection(("127.0.0.2", port), timeout=5).close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_click_and_a_drag_change_the_heat_map(address: str, browser: Any, scheme: str) -> None:
    width, height = (1280, 900) if scheme == "light" else (390, 844)
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    hosts, errors = set(), []
    page.on("request", lambda request: request.url.startswith("data:") or hosts.add(request.url.split("/")[2]))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#heat-maps figure img", timeout=DEADLINE)
    assert page.locator("#heat-maps section").count() == 2
    assert page.locator("#heat-maps figure img").count() == 2 * 3

    def changed(before: str) -> str:
        page.wait_for_function(
            "before => document.querySelector('#heat-maps figure img').src !== before", arg=before, timeout=DEADLINE
        )
        return page.locator("#heat-maps figure img").first.get_attribute("src")

    first = page.locator("#heat-maps figure img").first.get_attribute("src")
    box = page.locator("#picker .picker img").bounding_box()
    page.mouse.click(box["x"] + 0.3 * box["width"], box["y"] + 0.75 * box["height"])
    second = changed(first)
    style = page.locator("#picker .band").get_attribute("style")
    left, top = (float(re.search(rf"{side}: ([\d.]+)%", style)[1]) for side in ("left", "top"))  # type: ignore[index]
    assert abs(left - 30) < 1
    assert abs(top - 75) < 1
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.2 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.7 * box["height"], steps=3)
    page.mouse.up()
    assert changed(second) not in (first, second)
    style = page.locator("#picker .band").get_attribute("style")
    sides = [float(re.search(rf"{side}: ([\d.]+)%", style)[1]) for side in ("left", "top", "width", "height")]  # type: ignore[index]
    np.testing.assert_allclose(sides, [20, 20, 40, 50], atol=1)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert hosts == {address.split("/")[2]}
    assert errors == []
    context.close()
