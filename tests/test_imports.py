"""What is imported before a command answers: no PyTorch for help and recipes, no networks for a first error."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import resim
from resim.cli.main import VERBS

PROGRAM = """
import contextlib, io, json, sys
answers = []
for words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        from resim.cli.main import main
        try:
            code = main(words)
        except SystemExit as stop:
            code = stop.code
    slow = [name for name in ("torch", "torchvision.models") if name in sys.modules]
    answers.append((words, code or 0, out.getvalue(), err.getvalue(), slow))
print(json.dumps(answers))
"""


def answers(commands: list[list[str]], folder: Path) -> list[tuple[list[str], int, str, str, list[str]]]:
    """Each command's words, code, output and errors, with the slow modules that were imported up to then."""
    paths = os.pathsep.join(filter(None, (str(Path(resim.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(commands)],
        cwd=folder, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    return json.loads(done.stdout)


PARTS = "train, eval, predict, recipes"
ALL = "resim-fpn, resim-c4, moco-v2, quick, or a .json file that holds one"
HELP = [[verb, "--help"] for verb in VERBS] + [["detect", part, "--help"] for part in ("train", "eval", "predict")]
LISTS = [["--help"], ["--version"], ["recipes"], ["recipes", "resim-c4"], ["detect", "recipes"]]
MISTAKES = [
    (["pretrian", "photos"], f"resim: no verb 'pretrian': one of {', '.join(VERBS)}; did you mean 'pretrain'?\n"),
    (["Report"], f"resim: no verb 'Report': one of {', '.join(VERBS)}; did you mean 'report'?\n"),
    (["zzz"], f"resim: no verb 'zzz': one of {', '.join(VERBS)}\n"),
    (["recipes", "quik"], f"resim recipes: no recipe 'quik': one of {ALL}; did you mean 'quick'?\n"),
    (["detect", "tarin"], f"resim detect: one of {PARTS} is needed, not 'tarin'; did you mean 'train'?\n"),
    (["detect", "train", "x", "--recipe", "coco"], "resim detect: no protocol 'coco': one of coco-fpn-1x, "),
    (["pretrain", "photos", "--lr", "x"], "resim pretrain: "),
    (["pretrain", "photos", "--batch-size", "33"], "resim pretrain: batch-size 33 is no whole number of groups of 32"),
    (["preview", "photos", "--levels", "P4:window=900"], "resim preview: level P4: no window of 900 px fits into"),
    (["preview", "photos", "--out", "x.gif"], "resim preview: --out x.gif: must end in"),
    (["probe"], "resim probe: "),
    (["bench", "missing"], "resim bench: missing: there is no such folder or file"),
    (["demo", "--data", "missing"], "resim demo: --data missing: there is no such folder or file"),
    (["explore", "random", "--images", "missing"], "resim explore: --images missing: is no folder"),
    (["detect", "train", "missing.json"], "resim detect: missing.json: no such file or folder"),
    (["compare", "missing.json", "--init", "random", "--val", "val", "--out", "o"], "resim compare: missing.json: "),
]  # fmt: skip
LATER_MISTAKES = [  # PyTorch has to be there to see them
    (["pretrain", "missing"], "resim pretrain: missing: there is no such folder or file"),
    (["pack", "missing", "out"], "resim pack: missing: there is no such folder or file"),
    (["similarity", "missing.jpg", "--checkpoint", "random"], "resim similarity: missing.jpg: there is no such"),
    (["report", "missing"], "resim report: missing: is not a folder; name the folder of a run"),
    (["import", "missing.pt"], "resim import: missing.pt: "),
    (["export", "missing.pt", "--to", "timm"], "resim export: missing.pt: "),
    (["detect", "predict", "missing", "--model", "m.pt"], "resim detect: missing: there is no such folder or file"),
    (["explore", "missing.pt", "--images", "."], "resim explore: missing.pt: "),
]


def test_help_and_lists_take_no_pytorch(tmp_path: Path) -> None:
    for words, code, out, err, slow in answers([*LISTS, *HELP], tmp_path):
        assert (code, err, slow) == (0, "", []), words
        assert len(out) > 3, words


def test_mistakes_in_words_and_options_take_no_pytorch(tmp_path: Path) -> None:
    given = answers([words for words, _ in MISTAKES], tmp_path)
    for (words, code, out, err, slow), (_, line) in zip(given, MISTAKES, strict=True):
        assert (code, out, slow) == (2, "", []), words
        assert err.startswith(line), err
        assert err.count("\n") == 1


@pytest.mark.slow
def test_a_first_error_takes_no_models_of_torchvision(tmp_path: Path) -> None:
    given = answers([words for words, _ in LATER_MISTAKES], tmp_path)
    for (words, code, _, err, slow), (_, line) in zip(given, LATER_MISTAKES, strict=True):
        assert code == 2, words
        assert "torchvision.models" not in slow, words
        assert err.startswith(line), err


@pytest.mark.slow
def test_the_public_names_are_imported_when_they_are_used(tmp_path: Path) -> None:
    program = """
import sys, resim
assert set(resim.__all__) <= set(dir(resim)) and "torch" not in sys.modules
assert resim.recipes.resim_fpn().optim == resim.OptimConfig() and "torch" not in sys.modules
resim.ReSim
assert "torch" in sys.modules and "torchvision.models" not in sys.modules
names = {}
exec("from resim import *", names)
assert set(resim.__all__) <= set(names)
"""
    paths = os.pathsep.join(filter(None, (str(Path(resim.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "value",
    [resim.recipes.resim_c4(), resim.Level(name="P4"), resim.OptimConfig(lr=0.1), resim.ViewsConfig, resim.ReSim],
    ids=["recipe", "level", "optim", "views", "model"],
)
def test_public_names_are_pickled(value: Any) -> None:
    assert pickle.loads(pickle.dumps(value)) == value


def test_an_unknown_name_of_the_package_is_refused() -> None:
    with pytest.raises(AttributeError, match="module 'resim' has no attribute 'resim_fpn'"):
        resim.resim_fpn  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
