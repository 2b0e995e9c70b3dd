"""Encoders to inspect and measure: from any file that can be read, from a run's folder, or untrained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from resim import recipes
from resim.errors import UserError
from resim.exchange.features import build_encoder
from resim.exchange.sources import NAMES, is_untrained, untrained_model
from resim.exchange.weights import read_weights
from resim.model.encoder import Encoder, ModelConfig
from resim.model.resim import ReSim
from resim.runs.config import Recipe


@dataclass(frozen=True, kw_only=True)
class LoadedEncoder:
    """A query encoder in evaluation mode, and its origin."""

    name: str
    """Its name in tables."""
    kind: str
    """The kind of its file, as in `Weights.kind`."""
    encoder: Encoder
    has_head: bool
    """Whether the file has its global head; otherwise the head is untrained."""
    config: ModelConfig
    recipe: Recipe | None
    """The recipe in the file, if any."""
    path: Path | None
    """None: untrained."""
    licence: str | None = None

    def about(self) -> dict[str, str | None]:
        """Its origin, as plain data."""
        return {
            "kind": self.kind,
            "path": None if self.path is None else str(self.path),
            "recipe": None if self.recipe is None else self.recipe.name,
            "licence": self.licence,
        }


def load_encoders(words: Sequence[str], *, seed: int = 0) -> list[LoadedEncoder]:
    """One encoder per word: a file of weights, a run's folder, `torchvision:NAME`, `random`, or `random:RECIPE`.

    `random` is the network of the first other word before its training; without another word, that of resim-fpn.

    Raises:
        UserError: no word, a file that cannot be read as weights, no such recipe.
    """
    if not words:
        raise UserError(f"no network: name at least one; possible are {NAMES}")
    read = {word: load_encoder(word) for word in dict.fromkeys(words) if not is_untrained(word)}
    first = next(iter(read.values()), None)
    return _make_names_unique([read[word] if word in read else _untrained(word, first, seed) for word in words])


def load_encoder(path: str | Path) -> LoadedEncoder:
    """The query encoder of a file of weights or of a run's folder, in evaluation mode.

    Raises:
        UserError: as `read_weights`.
    """
    weights = read_weights(path, check_finite=False)  # a run that diverged has pictures and a report too
    return LoadedEncoder(
        name=_short(weights.path) if Path(path).exists() else str(path),  # torchvision:NAME is kept
        kind=weights.kind,
        encoder=build_encoder(weights),
        has_head=any(name.startswith("head.") for name in weights.tensors),
        config=weights.config,
        recipe=weights.recipe,
        path=weights.path,
        licence=weights.licence,
    )


def _untrained(word: str, first: LoadedEncoder | None, seed: int) -> LoadedEncoder:
    if untrained_model(word) is not None or first is None:
        recipe, has_head = recipes.RECIPES[word.partition(":")[2] or "resim-fpn"](), True
        config = recipe.model
    else:
        recipe, config, has_head = first.recipe, first.config, first.has_head
        seed = recipe.optim.seed if recipe is not None else seed  # of that run
    return LoadedEncoder(
        name=word,
        kind=f"untrained {config.backbone}, seed {seed}",
        encoder=ReSim(replace(config, queue_size=1), seed=seed).query.eval(),
        has_head=has_head,
        config=config,
        recipe=recipe,
        path=None,
    )


def _short(path: Path) -> str:
    """RUN for RUN/checkpoints/last.pt, RUN/epoch_0020 for another of its checkpoints, the file's name for others."""
    if path.parent.name != "checkpoints":
        return path.name
    run = path.absolute().parent.parent.name
    return run if path.name == "last.pt" else f"{run}/{path.stem}"


def _make_names_unique(loaded: list[LoadedEncoder]) -> list[LoadedEncoder]:
    """Replace equal names by paths, and number those that are still equal."""
    counts = Counter(item.name for item in loaded)
    longer = [
        replace(item, name=str(item.path)) if counts[item.name] > 1 and item.path is not None else item
        for item in loaded
    ]
    used: Counter[str] = Counter()
    named = []
    for item in longer:
        used[item.name] += 1
        named.append(item if used[item.name] == 1 else replace(item, name=f"{item.name} ({used[item.name]})"))
    return named
