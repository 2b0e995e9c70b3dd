"""What messages and pages say of installing: from the clone, with extras that there are, never by the name on PyPI."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "Makefile")]
FILES = [
    path
    for path in (*PAGES, *(file for part in ("src", "docs", "benchmarks") for file in sorted((ROOT / part).rglob("*"))))
    if path.suffix in (".md", ".py", ".sh", "") and path.is_file()
]
EXTRA = re.compile(r"'\.\[([\w,-]+)\]'")
BY_NAME = re.compile(r"resim\[|(?:pip|uv|conda|poetry)\b[^\n`'\"]*?\b(?:install|add)(?:\s+-\S+)*\s+['\"]?resim\b")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_line_to_install_is_of_the_clone_and_names_an_extra_that_there_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert BY_NAME.findall(text) == []
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = {name for found in EXTRA.findall(text) for name in found.split(",")}
    assert named <= set(extras)


@pytest.mark.parametrize(
    "line", ["pip install 'resim[timm]'", "pip install resim", "uv pip install --upgrade resim", "needs resim[hub]"]
)
def test_the_name_on_pypi_is_noticed(line: str) -> None:
    assert BY_NAME.search(line)


@pytest.mark.parametrize("line", ["pip install '.[timm]' in resim's clone", "pip install timm", "the extra `resim`"])
def test_other_lines_pass(line: str) -> None:
    assert BY_NAME.search(line) is None
