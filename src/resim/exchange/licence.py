"""The licence of weights: proved by their file, stated by the user, or unknown."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resim.errors import UserError

if TYPE_CHECKING:
    from resim.exchange.weights import Weights

RESIM_LICENCE = "CC-BY-NC-4.0"
"""Of the weights that the authors of ReSim published."""

RESIM_FILES = frozenset(
    f"resim_{name}.pth.tar"
    for name in (
        "fpn_400ep", "fpn_200ep", "c4_200ep", "fpn_backbone_400ep", "fpn_backbone_200ep", "c4_backbone_200ep",
    )
)  # fmt: skip
"""The files that the authors of ReSim published, in MoCo's form and as Detectron2 backbones."""

_IN_MOCO_FORM = re.compile(r"(module\.)?encoder_q\.fpn_(lateral|output)\d\.")
_NUMBERED_NORM = re.compile(r"(backbone\.)?fpn_(lateral|output)\d\.[01]\.")
_FPN = re.compile(r"(backbone\.)?fpn_(lateral|output)\d\.")
_HEAD_IN_STEM = re.compile(r"stem\.fc\.[02]\.")
_MOCO = re.compile(r"(module\.)?encoder_q\.(conv1|fc)\.")

STATED = "the user's --licence"

_MOCO_LICENCES = (
    "MoCo's repository is MIT since January 2023, the page of its weights said CC-BY-NC 4.0; the names in the files of "
    "ReSim-C4, CC-BY-NC 4.0, are not known"
)


def licence_of_file(
    path: Path, names: Collection[str], metadata: Mapping[str, Any], author: object = None
) -> tuple[str | None, str]:
    """The licence that a file of another program proves, and the evidence; or None, and why it is unknown.

    Args:
        path: of the file.
        names: of the entries of its state_dict, as in the file.
        metadata: in the file.
        author: `__author__` of a Detectron2 file.
    """
    stated = _stated(metadata)
    if stated is not None:
        return stated
    proof = _resim_name(names)
    if proof:
        return RESIM_LICENCE, f"a name that only files of the authors' ReSim program have, {proof}"
    moco = any(_MOCO.match(name) for name in names)
    head = any(_HEAD_IN_STEM.match(name) for name in names)
    if path.name in RESIM_FILES and (moco or head):
        return RESIM_LICENCE, f"the name of the file, under which the authors of ReSim published theirs, {path.name}"
    if author == "MOCO":
        return None, f"MoCo's converter signs any file; {_MOCO_LICENCES}"
    if moco:
        return None, f"every run of MoCo's program writes these names; {_MOCO_LICENCES}"
    return None, "nothing in the file states or proves one"


def licence_of_run(imported: Mapping[str, Any]) -> tuple[str | None, str]:
    """The licence of a checkpoint of ours, from its record of the weights that it started from, and the evidence."""
    licence, source = (_text(imported.get(key)) for key in ("licence", "licence_source"))
    if licence:
        return licence, f"the checkpoint's record of the weights that it started from{f' ({source})' if source else ''}"
    if source:
        return None, f"the weights that it started from state none: {source}"
    return None, "a run of resim has the licence that its owner states"


def licence_of_export(metadata: Mapping[str, Any]) -> tuple[str | None, str]:
    """The licence that an exported file of ours states, and the evidence."""
    return _stated(metadata) or (None, "nothing in the file states one")


def state_licence(weights: Weights, licence: str | None) -> Weights:
    """The weights under the licence that the user states (None: the user states none).

    Raises:
        UserError: a word that is no licence, or the file proves another licence.
    """
    if licence is None:
        return weights
    if not re.fullmatch(r"[\w.+-]+", licence):
        raise UserError(f"--licence {licence!r}: must be one word, such as Apache-2.0 or CC-BY-4.0")
    if weights.licence and licence.casefold() != weights.licence.casefold():
        raise UserError(
            f"--licence {licence}: these weights are {weights.licence}, which an export cannot change (taken from "
            f"{weights.licence_source}): leave --licence out"
        )
    if weights.licence:
        return weights
    return dataclasses.replace(weights, licence=licence, licence_source=STATED)


def licence_line(licence: str | None, source: str) -> str:
    """The licence and its evidence, for messages."""
    if licence is None:
        return f"licence: unknown, {source}; --licence states that of your own weights"
    if licence.casefold().startswith("cc-by-nc-4.0"):
        text = "CC-BY-NC 4.0 (as published): not for commercial use, nor are weights made from it"
        return f"licence: {text}; taken from {source}"
    return f"licence: {licence}; taken from {source}"


def _resim_name(names: Collection[str]) -> str | None:
    """A name that only the authors' ReSim files have.

    In MoCo's form it is an FPN in `encoder_q`. In a Detectron2 backbone it is an FPN with numbered norms, or an FPN
    together with a head of two layers in the stem; MoCo's and Detectron2's converters write such a head for any `fc`.
    """
    head = any(_HEAD_IN_STEM.match(name) for name in names)
    patterns = [_IN_MOCO_FORM, _NUMBERED_NORM, *([_FPN] if head else [])]
    return next((name for name in names if any(pattern.match(name) for pattern in patterns)), None)


def _stated(metadata: Mapping[str, Any]) -> tuple[str, str] | None:
    licence = _text(metadata.get("licence")) or _text(metadata.get("license"))
    if licence is None:
        return None
    source = _text(metadata.get("licence_source"))
    return licence, f"the file's metadata{f' ({source})' if source else ''}"


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
