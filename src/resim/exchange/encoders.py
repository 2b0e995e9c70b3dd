"""Encoders to look at and measure: of any file that can be read, of a run's folder, or untrained."""

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
    """A query encoder in evaluation mode, and what is known of it."""

    name: str
    """What to call it in a table."""
    kind: str
    """What its file was recognised as."""
    encoder: Encoder
    has_head: bool
    """Whether its global head was there; else it is untrained."""
    config: ModelConfig
    recipe: Recipe | None
    """Where the file carries one."""
    path: Path | None
    """None: untrained."""
    licence: str | None = None

    def about(self) -> dict[str, str | None]:
        """What is known of it, as plain data."""
        return {
            "kind": self.kind,
            "path": None if self.path is None else str(self.path),
            "recipe": None if self.recipe is None else self.recipe.name,
            "licence": self.licence,
        }


def load_encoders(words: Sequence[str], *, seed: int = 0) -> list[LoadedEncoder]:
    """One encoder a word: a file of weights, a run's folder, `torchvision:NAME`, `random`, or `random:RECIPE`.

    `random` is the untrained network of the first other word, as its run started; with no other word that of resim-fpn.

    Raises:
        UserError: no word, a file that cannot be read as weights, no such recipe.
    """
    if not words:
        raise UserError(f"no network: name at least one; possible are {NAMES}")
    read = {word: load_encoder(word) for word in dict.fromkeys(words) if not is_untrained(word)}
    first = next(iter(read.values()), None)
    return _tell_apart([read[word] if word in read else _untrained(word, first, seed) for word in words])


def load_encoder(path: str | Path) -> LoadedEncoder:
    """The query encoder of a file of weights or of a run's folder, in evaluation mode.

    Raises:
        UserError: as `read_weights`.
    """
    weights = read_weights(path, check_finite=False)  # a run that diverged has pictures and a report all the same
    return LoadedEncoder(
        name=_short(weights.path) if Path(path).exists() else str(path),  # torchvision:NAME stays as it is
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
        seed = recipe.optim.seed if recipe is not None else seed  # that run's start
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


def _tell_apart(loaded: list[LoadedEncoder]) -> list[LoadedEncoder]:
    """Names that are there twice become whole paths; what is still there twice is numbered."""
    counts = Counter(item.name for item in loaded)
    longer = [
        replace(item, name=str(item.path)) if counts[item.name] > 1 and item.path is not None else item
        for item in loaded
    ]
    seen: Counter[str] = Counter()
    named = []
    for item in longer:
        seen[item.name] += 1
        named.append(item if seen[item.name] == 1 else replace(item, name=f"{item.name} ({seen[item.name]})"))
    return named
