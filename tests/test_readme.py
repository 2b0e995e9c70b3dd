"""The README's Python examples run as they stand, each by itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import resim

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_there_are_two_examples() -> None:
    assert len(EXAMPLES) == 2


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=["model", "pieces"])
def test_an_example_runs_by_itself(example: str, tmp_path: Path) -> None:
    paths = os.pathsep.join(filter(None, (str(Path(resim.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", example],
        cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d\.\d", done.stdout)
    assert "nan" not in done.stdout


def test_every_extra_is_in_the_table_of_extras_and_nothing_else() -> None:
    table = re.search(r"^\| extra \| brings \|\n\|[ -|]+\n((?:\|.*\n)+)", README, flags=re.MULTILINE)
    assert table is not None
    named = {name for row in table[1].splitlines() for name in re.findall(r"`([\w-]+)`", row.split("|")[1])}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert named == set(project["optional-dependencies"])


def test_the_versions_of_python_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ours = [text.rpartition(" ")[2] for text in project["classifiers"] if re.search(r"Python :: 3\.\d+$", text)]
    assert f"Python {', '.join(ours[:-1])} or {ours[-1]}, " in README
