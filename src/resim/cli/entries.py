"""What `resim import` and `resim export` print: the entries of a file, grouped."""

from __future__ import annotations

from collections.abc import Sequence

from resim.exchange.export import Exported
from resim.exchange.licence import licence_line
from resim.exchange.training_state import Imported


def import_lines(imported: Imported, *, verbose: bool) -> list[str]:
    """What a file is, and which entries are loaded, copied, new and left over.

    Args:
        imported: as `import_state` returns it.
        verbose: list every entry, not only the parts of the network that they belong to.
    """
    weights = imported.weights
    lines = [*(f"warning: {text}" for text in weights.warnings), f"{weights.path}: {weights.kind}"]
    if weights.origin:
        lines.append(f"origin: {weights.origin}")
    lines.append(licence_line(weights.licence, weights.licence_source))
    if weights.passed_over:
        kinds = weights.passed_over if verbose else weights.passed_over[:6]
        rest = f", ... {len(weights.passed_over)} kinds in all" if len(kinds) < len(weights.passed_over) else ""
        lines.append(f"passed over, as it is no plain data: {', '.join(kinds)}{rest}")
    listed = _all_names if verbose else _parts
    lines += listed("loaded", imported.loaded)
    lines += listed("key encoder copied from the query", imported.copied)
    lines += listed("new", imported.new)
    lines += listed("left over", imported.left_over)
    added = f", {len(weights.added)} counters of batches set to 0" if weights.added else ""
    lines.append(
        f"in all {len(imported.loaded)} loaded, {len(imported.copied)} copied, {len(imported.new)} new, "
        f"{len(imported.left_over)} left over, momentum of {imported.momentum} parameters{added}"
    )
    return lines


def export_lines(exported: Exported) -> list[str]:
    """What was read and written, what was left out, and how near the target's features are to ours."""
    written = exported.written
    lines = [f"read {exported.weights.path}: {exported.weights.kind}", *exported.notes]
    lines += _all_names("left out", exported.left_out)
    lines += _all_names(f"starts new in {written.target}", written.starts_new)
    if exported.differences is None:
        lines.append(f"could not verify: {written.target.partition(',')[0]} is not installed here")
    else:
        values = ", ".join(f"{name} {value:.1e}" for name, value in exported.differences.items())
        what = "features and detections" if "boxes" in exported.differences else "features"
        lines.append(f"verified in {written.target}: largest difference from our {what}: {values}")
    return [
        *lines,
        licence_line(exported.weights.licence, exported.weights.licence_source),
        f"wrote {', '.join(map(str, exported.paths))}",
        f"load it: {written.load}",
    ]


def _parts(title: str, names: Sequence[str]) -> list[str]:
    """How many, and the parts of the network that they belong to, in at most four lines."""
    lines = [f"{title}: {len(names) or 'none'}"]
    parts: dict[str, list[str]] = {}
    for name in names:
        parts.setdefault(".".join(name.split(".")[:2]), []).append(name)
    shown = sorted(parts.items(), key=lambda item: -len(item[1]))[: 4 if len(parts) == 4 else 3]
    for part, members in shown:
        lines.append(f"  {members[0]}" if len(members) == 1 else f"  {part}.* ({len(members)})")
    if len(shown) < len(parts):
        rest = len(names) - sum(len(members) for _, members in shown)
        lines.append(f"  ... and {rest} more (--verbose lists all)")
    return lines


def _all_names(title: str, names: Sequence[str]) -> list[str]:
    """Every name; those that differ only in their last part on one line: `bn1.{weight,bias}`."""
    lines = [f"{title}: {len(names) or 'none'}"]
    grouped: dict[str, list[str]] = {}
    for name in names:
        stem, _, leaf = name.rpartition(".")
        grouped.setdefault(stem, []).append(leaf)
    for stem, leaves in grouped.items():
        joined = leaves[0] if len(leaves) == 1 else f"{{{','.join(leaves)}}}"
        lines += [f"  {stem}.{joined}"] if stem else [f"  {leaf}" for leaf in leaves]
    return lines
