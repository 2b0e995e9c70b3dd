"""The file that a path means: of a run's folder, of a hub folder, of shards."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from resim.errors import UserError

_IN_FOLDERS = (
    "checkpoints/last.pt", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)  # fmt: skip
INDEX = ".index.json"
"""The end of the name of an index of shards."""
_ENDINGS = (".pth", ".pt", ".pkl", ".ckpt", ".bin", ".tar", ".safetensors")
_NAME_A_FILE = "name a file of weights"
_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.(?:safetensors|bin)")


def file_of(path: Path) -> Path:
    """The file of weights in a run's folder or a hub folder; any other file itself.

    Raises:
        UserError: a folder without weights, or a file that has only a part of a network's tensors.
    """
    if not path.is_dir():
        _refuse_part(path)
        return path
    for name in _IN_FOLDERS:
        if (path / name).is_file():
            return path / name
    if (path / ".metadata").is_file():
        raise UserError(
            f"{path}: is a distributed checkpoint: python -m torch.distributed.checkpoint.format_utils dcp_to_torch "
            f"{path} FILE makes one file of it"
        )
    unpacked = next((file.parent for name in ("data.pkl", "*/data.pkl") for file in sorted(path.glob(name))), None)
    if unpacked is not None:
        raise UserError(
            f"{path}: is an unpacked file of torch.save: (cd {shlex.quote(str(unpacked.absolute().parent))} && zip -0 "
            f"-r {unpacked.absolute().name}.pth {unpacked.absolute().name}) makes a file of it"
        )
    raise UserError(f"{path}: is a folder without {_IN_FOLDERS[0]} or {_IN_FOLDERS[1]}; {_remedy(path)}")


def _refuse_part(path: Path) -> None:
    """Refuse a file that has only a part of a network's tensors, by its name."""
    shard = _SHARD.fullmatch(path.name)
    if shard is not None and int(shard["count"]) > 1:
        indices = sorted(path.parent.glob(f"*{INDEX}"))
        index = next((index for index in indices if index.name.startswith(f"{shard['stem']}.")), None)
        remedy = f"name {index}" if index else f"name their index ({shard['stem']}.*{INDEX}), which is missing here"
        raise UserError(f"{path}: is one of {int(shard['count'])} shards of a network: {remedy}")
    if path.suffix == ".distcp":
        raise UserError(f"{path}: is a part of a distributed checkpoint: name its folder, {path.parent}")


def _remedy(path: Path) -> str:
    """What to name instead of a folder without weights."""
    runs = sorted(str(file.parent.parent) for file in path.glob(f"*/{_IN_FOLDERS[0]}"))
    if runs:
        return f"name one of its runs: {', '.join(runs[:5])}{', ...' if runs[5:] else ''}"
    others = sorted(str(file) for file in (path / "checkpoints").glob("*.pt"))
    if others:
        return f"name one of its checkpoints: {', '.join(others[:5])}{', ...' if others[5:] else ''}"
    if (path / "config.json").is_file() and (path / "metrics.jsonl").is_file():
        return "the run stopped before its first checkpoint: repeat its command with --resume auto"
    files = sorted(str(file) for file in path.iterdir() if file.suffix in _ENDINGS and file.is_file())
    return f"name one of its files: {', '.join(files[:5])}{', ...' if files[5:] else ''}" if files else _NAME_A_FILE
