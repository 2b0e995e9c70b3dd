"""The explorer's own address: every other Host, and pages of other origins, are refused before anything is read."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from needs import need
from resim.similarity.own_host import HostGuard, OwnHost

LOCAL = OwnHost(host="127.0.0.1", port=7860)
EVERYWHERE = OwnHost(host="0.0.0.0", port=7860)

OWN = [
    "127.0.0.1:7860", "localhost:7860", "LOCALHOST:7860", "LocalHost:7860", "[::1]:7860", "[0:0:0:0:0:0:0:1]:7860",
]  # fmt: skip
STRANGE = [
    "", "evil.example", "evil.example:7860", "127.0.0.1", "localhost", "localhost:7861", "localhost:80",
    "localhost.:7860", "127.0.0.1.:7860", "127.0.0.1.evil.example:7860", "localhost.evil.example:7860",
    "evil.localhost:7860", "::1:7860", "::1", "[::1]", "[::2]:7860", "[::1]:7860:7860", "[::1", "0.0.0.0:7860",
    "[::]:7860", "127.0.0.2:7860", "2130706433:7860", "0x7f.1:7860", "127.1:7860", "0177.0.0.1:7860",
    "127.0.0.1:07860", "127.0.0.1:7860x", "127.0.0.1:7860/", "user@127.0.0.1:7860", "127.0.0.1:7860@evil.example",
    "127.0.0.1:7860, evil.example", "127.0.0.1 :7860", "127.0.0.1:", "127.0.0.1:-7860", "127.0.0.1:99999",
    "[::ffff:127.0.0.1]:7860", "lócalhost:7860", "localhost\t:7860", "１２７.0.0.1:7860", "127.0.0.1:７８６０",
    "xn--localhost:7860", "[localhost]:7860", "a" * 100_000, "[" * 10_000,
]  # fmt: skip


@pytest.mark.parametrize("authority", OWN)
def test_own_addresses(authority: str) -> None:
    assert LOCAL.includes(authority)


@pytest.mark.parametrize("authority", STRANGE, ids=lambda text: text[:40])
def test_other_addresses(authority: str) -> None:
    assert not LOCAL.includes(authority)


@pytest.mark.parametrize("blank", [b"\xa0", b"\x85", b"\x1c", b"\x0b", b"\x0c"])
def test_no_blank_but_space_and_tab_is_removed(blank: bytes) -> None:
    assert LOCAL.refusal([(b"host", b" localhost:7860\t")]) is None
    for value in (blank + b"localhost:7860", b"localhost:7860" + blank):
        assert LOCAL.refusal([(b"host", value)]) is not None
        assert LOCAL.refusal([(b"host", b"localhost:7860"), (b"origin", b"http://" + value)]) is not None


def test_the_host_that_the_option_names_is_one() -> None:
    for host, authority in (
        ("192.168.1.5", "192.168.1.5:7860"), ("mybox.local", "MYBOX.local:7860"), ("::1", "[::1]:7860"),
        ("[fd00::5]", "[fd00:0::5]:7860"),
    ):  # fmt: skip
        own = OwnHost(host=host, port=7860)
        assert own.includes(authority)
        assert own.includes("localhost:7860")
        assert not own.includes("192.168.1.6:7860")
        assert not own.includes("evil.example:7860")


def test_without_a_port_it_is_80() -> None:
    own = OwnHost(host="127.0.0.1", port=80)
    assert own.includes("localhost")
    assert own.includes("localhost:80")
    assert not own.includes("localhost:7860")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]"])
def test_on_all_addresses_numbers_and_the_machines_name_are_own_and_other_names_are_not(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "MyBox")
    own = OwnHost(host=host, port=7860)
    for authority in ("0.0.0.0:7860", "10.1.2.3:7860", "[fd00::5]:7860", "mybox:7860", *OWN):
        assert own.includes(authority)
    for authority in ("evil.example:7860", "mybox.evil.example:7860", "10.1.2.3:7861", "10.1.2.3", "localhost.:7860"):
        assert not own.includes(authority)


# -- requests


def answer(own: OwnHost, headers: list[tuple[str, str]], kind: str = "http") -> int | str:
    """The status of a request, 200 if the application behind the guard is reached."""
    sent: list[dict[str, Any]] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def receive() -> Any:
        raise AssertionError("the body was read")

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": kind, "headers": [(name.encode("latin1"), value.encode("latin1")) for name, value in headers]}
    asyncio.run(HostGuard(application, own)(scope, receive, send))
    return sent[0].get("status", sent[0]["type"])


GOOD = ("host", "127.0.0.1:7860")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([GOOD], 200),
        ([("Host", "localhost:7860")], 200),
        ([], 421),
        ([("host", "")], 421),
        ([GOOD, GOOD], 421),
        ([GOOD, ("host", "evil.example")], 421),
        ([("host", "evil.example:7860"), ("x-forwarded-host", "127.0.0.1:7860")], 421),
        ([GOOD, ("origin", "http://127.0.0.1:7860")], 200),
        ([GOOD, ("origin", "http://localhost:7860")], 200),
        ([GOOD, ("origin", "http://evil.example")], 403),
        ([GOOD, ("origin", "http://127.0.0.1:8000")], 403),
        ([GOOD, ("origin", "null")], 403),
        ([GOOD, ("origin", "")], 403),
        ([GOOD, ("origin", "file://")], 403),
        ([GOOD, ("origin", "http://127.0.0.1:7860"), ("origin", "http://evil.example")], 403),
        ([GOOD, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")], 403),
        ([GOOD, ("sec-fetch-site", "same-site")], 403),
        ([GOOD, ("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "cors")], 200),
        ([GOOD, ("sec-fetch-site", "none"), ("sec-fetch-mode", "navigate")], 200),
        ([GOOD, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")], 200),  # a link
    ],
)
def test_a_request_is_answered_or_refused_before_its_body_is_read(headers: list[tuple[str, str]], status: int) -> None:
    assert answer(LOCAL, headers) == status
    assert answer(EVERYWHERE, headers) == status
    assert answer(LOCAL, headers, "websocket") == (200 if status == 200 else "websocket.close")


def test_the_reason_names_the_address_and_the_tunnels_remedy() -> None:
    refusal = LOCAL.refusal([(b"host", b"localhost:9000")])
    assert refusal is not None
    assert refusal[0] == 421
    assert "http://127.0.0.1:7860/" in refusal[1]
    assert "ssh -L 7860:127.0.0.1:7860" in refusal[1]
    assert "0.0.0.0" not in str(EVERYWHERE.refusal([]))


def test_the_servers_own_events_pass() -> None:
    assert answer(LOCAL, [], "lifespan") == 200


# -- the server


def start(folder: Path, host: str) -> tuple[subprocess.Popen[str], int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "resim", "explore", "random:quick", "--images", str(folder), "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--host", host], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not re.search(r"1 images? of .* at http://", line):
        process.kill()
        raise AssertionError(f"no address was printed: {line}{process.communicate()[1]}")
    return process, port


@pytest.fixture(scope="module", params=["127.0.0.1", "0.0.0.0"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    need("gradio", "the explorer refuses requests to other hosts", "explore")
    folder = tmp_path_factory.mktemp("guarded")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder / "a.png")
    process, port = start(folder, request.param)
    yield request.param, port
    process.kill()
    process.communicate()


def raw(port: int, request: str) -> int:
    """The status of the answer to a request as it is written here."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(request.encode("latin1"))
        status = b""
        while b"\r\n" not in status:
            part = connection.recv(4096)
            if not part:
                break
            status += part
    return int(status.split(b" ", 2)[1])


PATHS = ("/", "/config", "/gradio_api/info", "/gradio_api/startup-events", "/gradio_api/queue/data?session_hash=a",
         "/gradio_api/file=/etc/passwd", "/theme.css", "/manifest.json")  # fmt: skip


@pytest.mark.slow
def test_raw_requests(server: tuple[str, int]) -> None:
    host, port = server
    own = [f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST:{port}", f"[::1]:{port}"]
    strange = ["evil.example", f"evil.example:{port}", "localhost", f"localhost.:{port}", f"localhost:{port + 1}", ""]
    (own if host == "0.0.0.0" else strange).append(f"0.0.0.0:{port}")
    for name in own:
        assert raw(port, f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n") == 200, name
    for name in strange:
        for path in PATHS:
            assert raw(port, f"GET {path} HTTP/1.1\r\nHost: {name}\r\n\r\n") == 421, (name, path)
        post = f"POST /gradio_api/queue/join HTTP/1.1\r\nHost: {name}\r\nContent-Length: 1000000\r\n\r\n"
        assert raw(port, post) == 421, name
        preflight = f"OPTIONS / HTTP/1.1\r\nHost: {name}\r\nOrigin: http://{name}\r\n"
        assert raw(port, f"{preflight}Access-Control-Request-Method: POST\r\n\r\n") == 421, name
    assert raw(port, "GET / HTTP/1.0\r\n\r\n") == 421
    assert raw(port, "GET / HTTP/1.1\r\n\r\n") in (400, 421)
    head = f"POST /gradio_api/queue/join HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 1000000\r\n"
    assert raw(port, f"{head}Origin: http://evil.example\r\n\r\n") == 403
    assert raw(port, f"{head}Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\n\r\n") == 403
