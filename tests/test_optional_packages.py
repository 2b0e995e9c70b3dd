"""Optional packages: the remedy for a missing one, and the name of what a broken one lacks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from resim.errors import UserError
from resim.optional_packages import find_optional, import_optional


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.startswith("wheel_of_")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def test_a_missing_package_gives_the_message(folder: Path) -> None:
    for module in ("wheel_of_nobody", "wheel_of_nobody.part"):
        assert find_optional(module) is None
        with pytest.raises(UserError, match=r"^install the wheel$"):
            import_optional(module, "install the wheel")


def test_a_package_that_is_there_is_imported(folder: Path) -> None:
    (folder / "wheel_of_a.py").write_text("value = 3\n")
    assert import_optional("wheel_of_a", "install it").value == 3


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import wheel_of_pandas", "it needs wheel_of_pandas, which is missing"),
        ("import wheel_of_broken.core", "it needs wheel_of_broken.core, which is missing"),
        ("from os import no_such_name", "cannot import name 'no_such_name' from 'os'"),
        ("raise ImportError('libGL.so.1: cannot open\\nshared object')", "libGL.so.1: cannot open shared object"),
    ],
)
def test_a_broken_package_names_what_it_lacks(folder: Path, source: str, message: str) -> None:
    (folder / "wheel_of_broken").mkdir()
    (folder / "wheel_of_broken" / "__init__.py").write_text(source + "\n")
    for read in (find_optional, lambda name: import_optional(name, "install wheel_of_broken")):
        with pytest.raises(UserError, match=r"^wheel_of_broken is installed but cannot be imported") as refused:
            read("wheel_of_broken")
        assert message in str(refused.value)
        assert "\n" not in str(refused.value)
