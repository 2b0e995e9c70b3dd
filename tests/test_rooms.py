"""The folders of the package: which imports are allowed, and which modules only one folder may use."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import resim

ROOT = Path(resim.__file__).resolve().parent
ORDER = (
    "version", "errors", "exit_codes", "signals", "counts", "reading", "optional_packages", "fields", "transfers",
    "acceleration", "regions", "distributed", "layers", "kernels", "views", "model", "runs", "recipes", "draw",
    "exchange", "scenes", "datasets", "scores", "probes", "training", "detection", "similarity", "report", "bench",
    "demo", "cli", "__main__", "__init__",
)  # fmt: skip
"""Each imports only from those before it. `docs/architecture.md` describes them."""

OPTIONAL = ("acceleration", "kernels")  # acceleration imports kernels if they are installed
FILES = sorted(ROOT.rglob("*.py"))


def room(module: str) -> str:
    """resim.model.resim -> model; resim itself -> __init__."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> Iterator[str]:
    """All modules of resim that a file imports, anywhere in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "resim")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "resim":
            assert node.module is not None
            yield from (f"resim.{alias.name}" if node.module == "resim" else node.module for alias in node.names)


def test_every_room_is_in_the_order() -> None:
    assert {room(name_of(path)) for path in FILES} == set(ORDER)


@pytest.mark.parametrize("here", ORDER)
def test_no_room_imports_from_one_above_it(here: str) -> None:
    upwards = [
        f"{name_of(path)} imports {module}"
        for path in FILES
        if room(name_of(path)) == here
        for module in imported(path)
        if ORDER.index(room(module)) > ORDER.index(here) and (here, room(module)) != OPTIONAL
    ]
    assert upwards == []


def test_only_acceleration_imports_kernels() -> None:
    imports = [
        f"{name_of(path)} imports {module}"
        for path in FILES
        if room(name_of(path)) != "kernels"
        for module in imported(path)
        if room(module) == "kernels" and room(name_of(path)) != "acceleration"
    ]
    assert imports == []


def test_modules_of_one_room_do_not_import_each_other_in_a_circle() -> None:
    """Only imports at the top of a file count; one within a function runs when the function is called."""
    edges: dict[str, set[str]] = {}
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        edges[name_of(path)] = {
            module
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("resim")
            for module in [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            if module is not None and module != "resim"
        }
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, f"circle: {' -> '.join([*above, module])}"
        if module not in done:
            for other in sorted(edges[module] & edges.keys()):
                visit(other, (*above, module))
            done.add(module)

    for module in edges:
        visit(module, ())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_one_room_uses_torch_distributed(path: Path) -> None:
    if room(name_of(path)) == "distributed":
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [ast.unparse(node)] if isinstance(node, ast.Attribute) else []
        assert not any(name.startswith("torch.distributed") for name in names), ast.unparse(node)
