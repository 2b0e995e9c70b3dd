"""Damage to bytes, texts and trees of plain data. All of it is a function of the generator that is passed in."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Sequence
from random import Random
from typing import Any

NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32767, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
WORDS = (
    "", " ", "a", "0", "-1", "nan", "inf", "-inf", "1e999", "1e-999", "9" * 400, "..", "../outside.png", "/etc/passwd",
    "../../outside.png", "\x00", "a\x00b", "\ud800", "\ufeff", "\r\n", "\t", "%s%n", "{}", "é" * 300, "a" * 5000,
    "<b>", "&amp;", "null", "true", "CON", "a/b", "a\\b", "C:\\a", "file:///etc/passwd", "random:", "torchvision:x",
    "[" * 50_000, '{"a":' * 50_000, "(" * 50_000,
)  # fmt: skip


def atom(rng: Random) -> Any:
    """A value that readers do not expect."""
    kind = rng.randrange(12)
    if kind == 0:
        return rng.choice((None, True, False))
    if kind == 1:
        return rng.choice(NUMBERS) * rng.choice((1, -1))
    if kind == 2:
        return rng.choice((float("nan"), float("inf"), -float("inf"), 1e308, 5e-324, -0.0, 0.1, 1e15 + 0.5))
    if kind == 3:
        return 10 ** rng.choice((20, 310, 4400))
    if kind == 4:
        return rng.choice(([], {}, [[]], [{}], {"": 0}, [None], [0, 0, 0, 0], ["a"], [[0, 0]], {"a": {"a": []}}))
    if kind == 5:
        value: Any = rng.choice((0, "a"))
        for _ in range(rng.choice((3, 10, 90, 200))):
            value = [value] if rng.random() < 0.5 else {"a": value}
        return value
    if kind == 6:
        return [rng.choice(NUMBERS) for _ in range(rng.randrange(12))]
    if kind == 7:
        return rng.uniform(-1e4, 1e4)
    if kind == 8:
        return rng.randrange(-3, 200)
    return rng.choice(WORDS)


def mutate_tree(tree: Any, rng: Random, changes: int | None = None) -> Any:
    """A copy of plain data with some entries replaced, removed, repeated or renamed."""
    try:
        tree = copy.deepcopy(tree)
    except RecursionError:
        return atom(rng)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 8)) if changes is None else changes):
        tree = _change(tree, rng)
    return tree


def _change(tree: Any, rng: Random) -> Any:
    parent: Any = None
    key: Any = None
    here = tree
    while isinstance(here, (dict, list)) and here and rng.random() < 0.85:
        parent, key = here, rng.choice(list(here)) if isinstance(here, dict) else rng.randrange(len(here))
        here = parent[key]
    if parent is None:
        return atom(rng) if rng.random() < 0.05 else tree
    kind = rng.randrange(8)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, list):
        parent[key:key] = [here] * rng.choice((1, 2, 50))
    elif kind == 2 and isinstance(parent, dict):
        parent[_text(atom(rng))] = parent.pop(key)
    elif kind == 3 and isinstance(here, (int, float)) and not isinstance(here, bool):
        parent[key] = rng.choice((-here, here * 2, here + 1, _text(here), [here], float("nan"), bool(here)))
    elif kind == 4 and isinstance(here, str):
        parent[key] = rng.choice((here.upper(), here + "/", "../" + here, here * 20, here[:-1], [here], f"{here}\x00"))
    elif kind == 5 and isinstance(parent, dict):
        parent[key] = rng.choice(list(parent.values()))
    else:
        parent[key] = atom(rng)
    return tree


def _text(value: Any) -> str:
    try:
        return str(value)[:300]
    except ValueError:  # an integer of more digits than Python prints
        return "9" * 300


def to_json(tree: Any) -> bytes:
    """JSON as Python writes it, NaN and lone surrogates included; numbers of thousands of digits too."""
    try:
        return json.dumps(tree).encode()
    except (ValueError, TypeError, RecursionError):
        return b'{"a": ' + b"9" * 5000 + b"}"


def mutate_bytes(data: bytes, rng: Random, others: Sequence[bytes] = ()) -> bytes:
    """A copy of some bytes with a few of twelve kinds of damage."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        size = len(out)
        at = rng.randrange(size) if size else 0
        kind = rng.randrange(12)
        if kind == 0 and size:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and size:
            out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, 0x0A, 0x20, 0x22, 0x2E))
        elif kind == 2:
            del out[at : at + rng.choice((1, 2, 4, 16, 200))]
        elif kind == 3:
            out[at:at] = rng.randbytes(rng.choice((1, 2, 4, 16)))
        elif kind == 4:
            out[at:at] = out[at : at + rng.choice((1, 4, 16, 512))] * rng.choice((1, 2, 30))
        elif kind == 5:
            del out[at:]
        elif kind == 6:
            form = rng.choice("<>") + rng.choice("BHIQ")
            value = rng.choice(NUMBERS) & ((1 << 8 * struct.calcsize(form)) - 1)
            out[at : at + struct.calcsize(form)] = struct.pack(form, value)
        elif kind == 7:
            out[at:at] = rng.choice(WORDS).encode("utf-8", "surrogatepass")
        elif kind == 8 and others:
            other = rng.choice(others)
            start = rng.randrange(len(other)) if other else 0
            out[at : at + rng.choice((0, 16, 10_000))] = other[start : start + rng.choice((8, 64, 10_000))]
        elif kind == 9:  # a number in a text
            digits = [index for index in range(at, min(size, at + 400)) if 48 <= out[index] <= 57]
            if digits:
                place = rng.choice(digits)
                out[place : place + 1] = str(rng.choice((*NUMBERS, -1, 0.5, "1e999", "nan"))).encode()
        elif kind == 10 and size:
            other = rng.randrange(size)
            out[at], out[other] = out[other], out[at]
        else:
            out[at : at + rng.choice((1, 8, 64))] = bytes(rng.choice((0, 0xFF)) for _ in range(rng.choice((1, 8, 64))))
    return bytes(out[: 1 << 20])
