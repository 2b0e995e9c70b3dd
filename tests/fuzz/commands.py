"""Recipes, the folders of runs, the command line's words, and the explorer's requests."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

from resim import recipes as pretraining
from resim.cli.main import VERBS
from resim.cli.options import read_options
from resim.detection.config import DetectRecipe, DetectRun
from resim.detection.recipes import DETECT_RECIPES
from resim.errors import UserError
from resim.report.run_files import read_runs
from resim.runs.config import Recipe, read_run_settings, read_settings
from resim.runs.config import read_recipe as read_recipe_file
from resim.similarity.explorer import Explorer
from resim.similarity.explorer_page import picker_value
from resim.similarity.own_host import HostGuard, OwnHost


@functools.cache
def recipes() -> Sequence[Any]:
    """Recipes alone, and in the config.json of a run."""
    ours = [make().to_json() for make in pretraining.RECIPES.values()]
    theirs = [make().to_json() for make in DETECT_RECIPES.values()]
    run = {
        "start_from": None,
        "start_epoch": 0,
        "workers": 2,
        "probe_data": "/a",
        "kernels": "auto",
        "max_bad_share": 0.1,
    }
    return [*ours, *theirs, {"recipe": ours[0], "run": run}, {"recipe": theirs[0], "run": run, "init": "random"}]


def read_recipe(data: bytes, folder: Path) -> None:
    """Read a recipe of both kinds, and the settings of a run."""
    path = folder / "config.json"
    path.write_bytes(data)
    for read in (
        lambda: read_recipe_file(path, Recipe),
        lambda: read_recipe_file(path, DetectRecipe),
        lambda: read_run_settings(path),
        lambda: read_settings(path, DetectRun, ("workers", "max_bad_share")),
    ):
        try:
            read()
        except UserError:
            continue


def with_run(folder: Path) -> None:
    """The config.json of a run, whose metrics are the input."""
    content = {"recipe": pretraining.quick().to_json(), "run": {}, "data": {"images": 3}}
    (folder / "config.json").write_text(json.dumps(content))


@functools.cache
def metrics() -> Sequence[bytes]:
    """Lines of metrics.jsonl and of probe.json."""
    line = {"step": 3, "epoch": 0.5, "loss": 4.2, "lr": 0.03, "loss_P4": 1.0, "images_per_second": 9.0}
    lines = [json.dumps(line | {"step": step}) for step in range(6)]
    return [
        "\n".join(lines).encode(),
        b'{"networks": [{"path": "a", "knn": 0.5}], "settings": {}}',
        b'{"step": NaN}\n{}\n',
    ]


def read_run(data: bytes, folder: Path) -> None:
    """Read a run's folder for a report."""
    for name in ("metrics.jsonl", "probe.json", "probes.jsonl", "scores.jsonl"):
        (folder / name).write_bytes(data)
        try:
            read_runs([folder])
        except UserError:
            continue
        finally:
            (folder / name).unlink()


@functools.cache
def arguments() -> Sequence[bytes]:
    """Words of the command line, separated by NUL."""
    lines = [
        "pretrain DIR --epochs 3 --batch-size 64 --group-size 32 --levels P4:fpn:16:48:32 --resume auto --out OUT",
        "pretrain DIR --recipe quick --lr 0.03 --workers -1 --no-decay-norms --start-from random:quick",
        "detect train FILE --recipe quick --val-fraction 0.2 --min-sizes 64 80 --drops 1 2 --init torchvision:resnet50",
        "detect predict CKPT DIR --score 0.5", "detect eval CKPT FILE", "compare FILE --init random --seeds 0 1 2",
        "probe CKPT --train DIR --test DIR", "explore random --images DIR --host 0.0.0.0 --port 80 --max-side 64",
        "similarity CKPT --images a b --point 3,4", "pack DIR --out OUT", "import FILE --out OUT --prefix a.",
        "export FILE --to hub --out OUT", "report OUT", "bench --size 64", "scenes --count 3 --out OUT",
        "demo --minutes 3",
        "recipes", "preview DIR --out OUT", "detect recipes", "--version", "detect", "pretrain --help",
    ]  # fmt: skip
    return ["\x00".join(line.split()).encode() for line in lines]


def parse(data: bytes, folder: Path) -> None:
    """Parse the words of a command; nothing is run."""
    words = data.decode("utf-8", "surrogateescape").split("\x00")
    words = [str(folder / word) if word in ("DIR", "OUT", "FILE", "CKPT") else word for word in words]
    verbs: dict[str, ModuleType] = VERBS
    name = ""
    while words and words[0] in verbs:
        name, module, words = f"{name} {words[0]}".strip(), verbs[words[0]], words[1:]
        if not hasattr(module, "VERBS"):
            default = module.defaults(words) if hasattr(module, "defaults") else None
            read_options(module.Options, words, name, "", default)
            return
        verbs = module.VERBS


@functools.cache
def requests() -> Sequence[bytes]:
    """Heads of requests, and a body of the explorer's events."""
    host = "host: 127.0.0.1:7860"
    heads = [
        host, "host: localhost:7860\norigin: http://localhost:7860", "host: [::1]:7860\nsec-fetch-site: same-origin",
        "host: evil.example\nx-forwarded-host: 127.0.0.1:7860", f"{host}\norigin: null", "host: 0.0.0.0:7860",
    ]  # fmt: skip
    bodies = ['["a.png", [0.5, 0.5]]', '["../outside.png", [0, 0, 1, 1]]', '["a.png", [0.1, NaN]]']
    return [f"{head}\n\n{body}".encode() for head in heads for body in bodies]


def with_picture(folder: Path) -> None:
    """The picture that the explorer shows."""
    Image.new("RGB", (40, 32)).save(folder / "a.png")


@functools.cache
def _explorer(folder: str) -> Explorer:
    return Explorer(Path(folder), ())


def request(data: bytes, folder: Path) -> None:
    """Pass a request through the guard; then the region of its body, as the page's events pass it.

    A request that the guard passes on must have exactly one Host, and that one of ours.
    """
    head, _, body = data.partition(b"\n\n")
    headers = [(name.strip(), value.strip()) for name, _, value in (line.partition(b":") for line in head.split(b"\n"))]
    reached: list[bool] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        reached.append(True)

    async def send(message: Any) -> None:
        assert message.get("status", 421) in (403, 421)

    guard = HostGuard(application, OwnHost(host="127.0.0.1", port=7860))
    _drive(guard({"type": "http", "headers": headers}, None, send))
    if reached:
        hosts = [value.decode("latin1").lower() for name, value in headers if name.lower() == b"host"]
        names = {host.removesuffix(":7860") for host in hosts}
        assert len(hosts) == 1, hosts
        assert names <= {"127.0.0.1", "localhost"} or all(
            name.strip("[]").strip("0:") in ("1", "") for name in names
        ), names
    try:
        name, region = json.loads(body)
        numbers = [float(value) for value in region][:4]
    except (ValueError, TypeError, OverflowError, RecursionError):
        return
    if not isinstance(name, str):
        return
    explorer = _explorer(str(folder))
    for act in (explorer.region, lambda *words: picker_value(explorer, *words)):
        if len(numbers) in (2, 4):
            act(name, numbers)


def _drive(answer: Any) -> None:
    """Run a coroutine that never waits, without a loop."""
    try:
        answer.send(None)
    except StopIteration:
        return
    raise AssertionError("the guard waits for something")
