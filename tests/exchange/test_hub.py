"""`resim.load` from a file, a folder, and a server on loopback that speaks the hub's file routes."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import resim
from exchange_files import SMALL, own_checkpoint
from needs import need
from resim.errors import UserError
from resim.exchange.export import export
from resim.model.encoder import Encoder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub folder."""
    path = tmp_path_factory.mktemp("own") / "last.pt"
    own_checkpoint(path, SMALL)
    return export(path, "hub", path.parent / "folder").paths[0]


def same_as_the_checkpoint(encoder: Encoder, folder: Path) -> bool:
    state = torch.load(folder.parent / "last.pt", weights_only=True)["model"]
    return all(torch.equal(value, state[f"query.{name}"]) for name, value in encoder.state_dict().items())


@pytest.mark.slow
def test_a_folder_a_file_and_a_checkpoint_give_the_same_encoder(folder: Path) -> None:
    for source in (folder, str(folder), folder / "model.safetensors", folder.parent / "last.pt"):
        encoder = resim.load(source)
        assert not encoder.training
        assert same_as_the_checkpoint(encoder, folder)
    vectors, levels = encoder(torch.zeros(2, 3, 64, 64))
    assert vectors.shape == (2, 128)
    assert {name: tuple(value.shape) for name, value in levels.items()} == {"P4": (2, 256, 4, 4), "P3": (2, 256, 8, 8)}


@pytest.mark.slow
def test_loading_does_not_use_the_global_generator(folder: Path) -> None:
    before = torch.get_rng_state()
    resim.load(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_name_that_is_neither_a_file_nor_on_the_hub(tmp_path: Path) -> None:
    for source in (tmp_path / "none.pt", "none.safetensors", "a/b/c"):
        with pytest.raises(UserError, match=r"cannot be read \(No such file or directory\)"):
            resim.load(source)


class Hub(http.server.BaseHTTPRequestHandler):
    """GET and HEAD of /user/name-1.0/resolve/REVISION/FILE, with the headers that the hub's client asks for."""

    def __init__(self, folder: Path, asked: list[str], *rest: Any) -> None:
        self.folder, self.asked = folder, asked
        super().__init__(*rest)

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self.wfile.write(self._answer())

    def _answer(self) -> bytes:
        self.asked.append(f"{self.command} {self.path}")
        name = self.path.removeprefix("/user/name-1.0/resolve/main/")
        path = self.folder / name
        if name == self.path or not path.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound" if name == self.path else "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return b""
        data = path.read_bytes()
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        return data

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its base's name
        return


@pytest.fixture
def hub(folder: Path) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Hub, folder, asked))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    thread.join()
    server.server_close()


PROGRAM = """
import sys, torch, resim
torch.save(resim.load("user/name-1.0").state_dict(), sys.argv[1])
for name in ("user/other", "user/name-1.0"):
    try:
        resim.load(name, revision="main" if name == "user/other" else "v2")
    except resim.UserError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_name_on_the_hub(folder: Path, hub: tuple[str, list[str]], tmp_path: Path) -> None:
    need("huggingface_hub", "weights are fetched from the hub by name", "hub")
    endpoint, asked = hub
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
    ours = str(Path(resim.__file__).parents[1])
    paths = os.pathsep.join(filter(None, (ours, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "state.pt")],
        capture_output=True, text=True, env=os.environ | settings | {"PYTHONPATH": paths}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    encoder = resim.load(folder)
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())
    assert "GET /user/name-1.0/resolve/main/model.safetensors" in asked
    files = {line.rpartition("/")[2] for line in asked if "/resolve/" in line}
    assert files == {"model.safetensors"}  # nothing else is fetched
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for name, line in zip(("user/other", "user/name-1.0"), lines, strict=True):
        assert line.startswith(f"{name}: no such file here, and it cannot be downloaded from the hub (")


@pytest.mark.slow
def test_the_hub_s_client_reads_the_card(folder: Path) -> None:
    hub: Any = need("huggingface_hub", "the hub's client reads the model card", "hub")
    card = hub.ModelCard((folder / "README.md").read_text())
    assert card.data.library_name == "resim"
    assert "object-detection" in card.data.tags
    assert card.data.license is None


def test_without_the_hub_s_client_the_remedy_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        UserError, match=r"user/name-1.0: no such file here; .* pip install '\.\[hub\]' in resim's clone"
    ):
        resim.load("user/name-1.0")
