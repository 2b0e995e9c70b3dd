"""The explorer answers only to its own address.

A page of a stranger cannot read answers of another origin, unless its server lets its own name point to 127.0.0.1 (DNS
rebinding): the browser then sends that name as Host. So a request whose Host is another is refused before anything is
read, and so is one that a page of another origin makes (Origin, Sec-Fetch-Site).
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Any, Send], Awaitable[None]]

MISDIRECTED, FORBIDDEN = 421, 403
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)(?::([1-9][0-9]{0,4}))?")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class OwnHost:
    """The addresses of one server.

    They are 127.0.0.1, localhost, [::1] and `host`, each with the port. Where `host` means all addresses (0.0.0.0 or
    ::), every address in numbers and the machine's name are added: a name that a stranger owns is still none of them.
    """

    host: str
    port: int

    def includes(self, authority: str) -> bool:
        """Whether a Host header (or the part of an Origin after `//`) is one of the addresses."""
        match = _AUTHORITY.fullmatch(authority)
        if match is None or int(match[2] or 80) != self.port:
            return False
        name, own = _normal(match[1]), _normal(self.host)
        if name in (*_LOOPBACK, own):
            return True
        return own in ("0.0.0.0", "::") and (_is_numeric(name) or name == socket.gethostname().lower())

    def refusal(self, headers: Iterable[tuple[bytes, bytes]]) -> tuple[int, str] | None:
        """The status and the reason with which a request is refused; None: it is answered."""
        values: dict[str, list[str]] = {}
        for name, value in headers:
            values.setdefault(name.decode("latin1").lower(), []).append(value.decode("latin1").strip(" \t"))
        hosts = values.get("host", [])
        if len(hosts) != 1 or not self.includes(hosts[0]):
            shown = _normal(self.host)
            shown = "this machine's address" if shown in ("0.0.0.0", "::") else f"[{shown}]" if ":" in shown else shown
            return MISDIRECTED, (
                f"This server answers only to http://{shown}:{self.port}/ (a tunnel must have the same port at both "
                f"ends: ssh -L {self.port}:127.0.0.1:{self.port})."
            )
        for origin in values.get("origin", []):
            scheme, _, authority = origin.partition("://")
            if scheme not in ("http", "https") or not self.includes(authority):
                return FORBIDDEN, "Pages of other origins may not use this server."
        sites, modes = values.get("sec-fetch-site", []), values.get("sec-fetch-mode", [])
        if any(site in ("cross-site", "same-site") for site in sites) and modes != ["navigate"]:
            return FORBIDDEN, "Pages of other origins may not use this server."
        return None


def _normal(host: str) -> str:
    """A name in lower case, a numeric address in its shortest form, both without brackets."""
    text = host.strip("[]").lower()
    return str(ipaddress.ip_address(text)) if _is_numeric(text) else text


def _is_numeric(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


class HostGuard:
    """An ASGI application that passes on the requests to its own address and refuses all others."""

    def __init__(self, app: App, own: OwnHost) -> None:
        self.app, self.own = app, own

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        """Answer one request, or refuse it before its body is read."""
        refusal = self.own.refusal(scope.get("headers", ())) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            status, reason = refusal
            body = f"{reason}\n".encode()
            headers = [
                (b"content-type", b"text/plain; charset=utf-8"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
