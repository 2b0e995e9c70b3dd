"""An imported state written as a checkpoint of ours, and read again."""

from __future__ import annotations

import json
from pathlib import Path

from resim.errors import UserError
from resim.exchange.training_state import Imported
from resim.exchange.weights import read_weights
from resim.runs.checkpoints import save_checkpoint, write_atomically


def write_import(out: Path, imported: Imported) -> list[str]:
    """Write the checkpoint, and its recipe next to it as .json.

    Args:
        out: the checkpoint, which ends in .pt.
        imported: as `import_state` returns it.

    Returns:
        Lines for the user: what was written, and the command that pre-trains from it.

    Raises:
        UserError: the checkpoint is not bit-equal when it is read again.
    """
    save_checkpoint(out, imported.state)
    again = read_weights(out)
    names = {name.removeprefix("query.") for name in imported.loaded if name.startswith("query.")}
    different = [name for name in names if not again.tensors[name].equal(imported.weights.tensors[name])]
    if different:
        raise UserError(f"{out}: {different[0]} was not read as it was written")
    text = json.dumps(imported.recipe.to_json(), indent=2) + "\n"
    recipe = out.with_suffix(".json")
    write_atomically(recipe, lambda file: file.write(text.encode()))
    epoch = imported.weights.epoch
    epochs = f" --start-epoch {epoch} --epochs {2 * epoch}" if epoch else ""
    return [
        f"wrote {out}, bit-equal when read again, and its recipe {recipe}",
        f"go on with: resim pretrain DIR --recipe {recipe} --start-from {out}{epochs}",
    ]
