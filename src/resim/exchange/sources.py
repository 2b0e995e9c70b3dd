"""Names of weights on the command line: `--init`, `--start-from`, checkpoints to probe and to show.

`random`, `random:RECIPE`, a run's folder, a file of any program that `read_weights` reads, `torchvision:NAME`,
`torchvision:NAME:WEIGHTS`.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resim import recipes
from resim.errors import UserError
from resim.model.encoder import ModelConfig

UNTRAINED = "random"
TORCHVISION = "torchvision"
NAMES = (
    "random, a run's folder, a file of weights of any program that resim import reads, or torchvision:NAME such as "
    "torchvision:resnet50 (ImageNet's weights, downloaded once)"
)
"""For help texts and errors."""

_BACKBONES = re.compile(r"(wide_)?res(net|next)\d+\w*")
_DETECTORS = re.compile(r"\w+_resnet\d+_fpn(_v2)?")


@dataclass(frozen=True, kw_only=True)
class TorchvisionFile:
    """Weights of torchvision in its download cache."""

    network: str
    version: str
    """Such as IMAGENET1K_V2."""
    url: str
    path: Path
    """The file in the cache of torch.hub, which need not exist."""

    @property
    def origin(self) -> str:
        """The source of the weights, for messages."""
        return f"torchvision's {self.network}, {self.version}"


def is_untrained(word: str | Path) -> bool:
    """Whether `word` names an untrained network: `random`, or `random:RECIPE`."""
    return str(word).partition(":")[0] == UNTRAINED


def untrained_model(word: str | Path) -> ModelConfig | None:
    """The network of `random:RECIPE`; None for `random`, where the caller chooses the network.

    Raises:
        UserError: no such recipe.
    """
    name = str(word).partition(":")[2]
    if name and name not in recipes.RECIPES:
        raise UserError(f"{word}: no recipe {name!r}: one of {', '.join(recipes.RECIPES)}")
    return recipes.RECIPES[name]().model if name else None


def is_at_hand(word: str | Path) -> bool:
    """Whether the file or folder that `word` names can be read without a download."""
    if is_untrained(word):
        return False
    return torchvision_file(word).path.exists() if _scheme(word) == TORCHVISION else Path(word).exists()


def locate(word: str | Path) -> tuple[Path, str | None]:
    """The file or folder that a word names, and the source of its weights where the word states it.

    Torchvision's weights are read from torch.hub's cache (below `TORCH_HOME`) and downloaded to it if missing.

    Raises:
        UserError: no such file, or weights that cannot be downloaded.
    """
    if _scheme(word) == TORCHVISION:
        file = torchvision_file(word)
        if not file.path.exists():
            _download(file, str(word))
        return file.path, file.origin
    path = Path(word)
    if not path.exists() and not path.is_symlink():
        raise UserError(_unknown(str(word)))
    return path, None


def torchvision_file(word: str | Path) -> TorchvisionFile:
    """The file of `torchvision:NAME` (its best weights) or `torchvision:NAME:WEIGHTS`.

    Raises:
        UserError: torchvision has no such ResNet, or not these weights of it.
    """
    import torch
    from torchvision import models

    name, _, version = str(word).partition(":")[2].partition(":")
    known = torchvision_names()
    if name not in known:
        raise UserError(f"{word}: torchvision has no ResNet {name!r}: one of {', '.join(known)}{_nearest(name, known)}")
    entries: dict[str, Any] = {entry.name: entry for entry in models.get_model_weights(name)}
    if version and version not in entries:
        raise UserError(f"{word}: torchvision's {name} has no weights {version!r}: one of {', '.join(entries)}")
    entry = entries[version] if version else models.get_model_weights(name)["DEFAULT"]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    return TorchvisionFile(network=name, version=entry.name, url=entry.url, path=folder / entry.url.rpartition("/")[2])


def torchvision_names() -> list[str]:
    """The names of torchvision's ResNets and of its detectors with a ResNet."""
    from torchvision import models

    return [name for name in models.list_models(models) if _BACKBONES.fullmatch(name)] + [
        name for name in models.list_models(models.detection) if _DETECTORS.fullmatch(name)
    ]


def download(url: str, path: Path) -> None:
    """Download a file as torch.hub does: moved into place when complete, its SHA-256 compared with its name."""
    import torch

    check = re.search(r"-([a-f0-9]{8,})\.", path.name)
    torch.hub.download_url_to_file(url, str(path), check[1] if check else None, progress=False)


def _download(file: TorchvisionFile, word: str) -> None:
    print(f"downloading {file.url} to {file.path}", flush=True)
    try:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        download(file.url, file.path)
    except (OSError, RuntimeError) as error:  # no network, a full disk, a wrong hash
        reason = str(getattr(error, "reason", None) or error).splitlines()[0][:120]
        remedy = f"download it by hand to {file.path}{_other_versions(file)}"
        raise UserError(f"{word}: {file.url} cannot be downloaded ({reason}): {remedy}") from None


def _other_versions(file: TorchvisionFile) -> str:
    """Other weights of the network in the cache, as a remedy."""
    from torchvision import models

    others = [
        entry.name
        for entry in models.get_model_weights(file.network)
        if file.path.with_name(entry.url.rpartition("/")[2]).exists()
    ]
    names = ", ".join(f"{TORCHVISION}:{file.network}:{name}" for name in others)
    return f", or use {names}, which is in the cache" if others else ""


def _scheme(word: str | Path) -> str:
    """The word before a colon; "" where a folder or file has the complete name."""
    text = str(word)
    start, colon, _ = text.partition(":")
    return start if colon and re.fullmatch(r"\w+", start) and not os.path.lexists(text) else ""


def _unknown(word: str) -> str:
    """The message for a word that names no weights, with a remedy."""
    scheme, name = _scheme(word), word.partition(":")[2]
    if scheme and difflib.get_close_matches(scheme.lower(), [TORCHVISION, "tv", "torch", "imagenet"], cutoff=0.75):
        hint = f"; did you mean {TORCHVISION}:{name}?"
    elif scheme == UNTRAINED:
        hint = ""
    elif word.lower() == "imagenet" or (_may_be_torchvisions(word) and word in torchvision_names()):
        hint = f"; did you mean {TORCHVISION}:{word if word.lower() != 'imagenet' else 'resnet50'}?"
    elif scheme in ("timm", "hf", "hub") or word.startswith("timm/"):
        hint = "; save the network's state_dict to a file first, and name the file"
    else:
        hint = ""
    return f"{word}: cannot be read (No such file or directory); possible are {NAMES}{hint}"


def _may_be_torchvisions(word: str) -> bool:
    """Whether a word has the form of torchvision's names; this avoids the slow import of its models."""
    return bool(_BACKBONES.fullmatch(word) or _DETECTORS.fullmatch(word))


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=1)
    return f"; did you mean {TORCHVISION}:{near[0]}?" if near else ""
