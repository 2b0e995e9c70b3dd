"""A skipped test leaves a fact unverified: its reason says which, and what to install."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
SKIPS = ("pytest.skip", "pytest.mark.skip", "pytest.mark.skipif", "pytest.importorskip")


def without_fact(source: str) -> list[str]:
    """The calls that skip without a reason of the form `not verified: FACT: REMEDY` or `verified ELSEWHERE`."""
    tree = ast.parse(source)
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    bad = []
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or ast.unparse(call.func) not in SKIPS:
            continue
        named = [keyword.value for keyword in call.keywords if keyword.arg == "reason"]
        plain = call.args[:1] if ast.unparse(call.func) in SKIPS[:2] else []
        reason = next(iter(named + plain), None)
        if isinstance(reason, ast.Name):
            reason = constants.get(reason.id, reason)
        text = "" if reason is None else ast.unparse(reason).removeprefix("f").strip("'\"")
        if not text.startswith(("not verified: ", "verified ")):
            bad.append(ast.unparse(call))
    return bad


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: path.stem)
def test_a_skip_says_which_fact_stays_unverified(path: Path) -> None:
    assert without_fact(path.read_text(encoding="utf-8")) == []


def test_a_reason_without_a_fact_is_noticed() -> None:
    assert without_fact("pytest.importorskip('timm')") == ["pytest.importorskip('timm')"]
    assert without_fact("pytest.skip(f'no {x}')") == ["pytest.skip(f'no {x}')"]
    assert without_fact("pytest.skip(f'not verified: {x}: install it')") == []
    assert without_fact("WHY = 'as root'\npytest.mark.skipif(True, reason=WHY)") == [
        "pytest.mark.skipif(True, reason=WHY)"
    ]
