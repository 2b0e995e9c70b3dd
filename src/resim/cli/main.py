"""The `resim` command: a table of verbs.

Each verb is a module with a dataclass `Options` and a function `run(options)`; where the defaults depend on a recipe or
on a run to resume, it also has a function `defaults(argv)`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType

from resim.cli import (
    bench,
    compare,
    demo,
    detect,
    explore,
    export,
    import_,
    pack,
    pretrain,
    preview,
    probe,
    recipes,
    report,
    scenes,
    similarity,
)
from resim.cli.options import read_options
from resim.cli.rules import nearest
from resim.errors import UserError

VERBS: dict[str, ModuleType] = {
    "pretrain": pretrain,
    "preview": preview,
    "probe": probe,
    "recipes": recipes,
    "pack": pack,
    "bench": bench,
    "scenes": scenes,
    "similarity": similarity,
    "explore": explore,
    "report": report,
    "detect": detect,
    "compare": compare,
    "import": import_,
    "export": export,
    "demo": demo,
}
"""The first line of a module's docstring describes its verb; a module with `VERBS` is a group of verbs."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0; 2 for what the user can mend, in one line on the error output; 130 for Ctrl+C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if words else 2
    verb, *rest = words
    if verb == "--version":
        from resim.version import __version__

        print(__version__)
        return 0
    if verb not in VERBS:
        print(f"resim: no verb {verb!r}: one of {', '.join(VERBS)}{nearest(verb, VERBS)}", file=sys.stderr)
        return 2
    try:
        _run(VERBS[verb], verb, rest)
    except UserError as error:
        print(f"resim {verb}: {_one_line(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        print(f"resim {verb}: interrupted", file=sys.stderr)
        return 130
    except OSError as error:  # a full disk, a folder that went away
        where = f"{error.filename}: " if error.filename else ""
        print(f"resim {verb}: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    return 0


def _one_line(message: str) -> str:
    """A message in one line of at most 2,000 characters: a name in a file can have a million."""
    line = " ".join(message.splitlines())
    line = line if len(line) <= 2000 else f"{line[:1500]} ... {line[-450:]}"
    return line.encode("utf-8", "backslashreplace").decode()


def _run(module: ModuleType, verb: str, argv: Sequence[str]) -> None:
    if hasattr(module, "VERBS"):
        _run_group(module.VERBS, verb, argv)
        return
    default = module.defaults(argv) if hasattr(module, "defaults") else None
    module.run(read_options(module.Options, argv, verb, _description(module), default))


def _run_group(verbs: dict[str, ModuleType], group: str, argv: Sequence[str]) -> None:
    if argv and argv[0] in verbs:
        _run(verbs[argv[0]], f"{group} {argv[0]}", argv[1:])
    elif argv and argv[0] in ("-h", "--help"):
        print(f"usage: resim {group} {'|'.join(verbs)} ...\n\n{_table(verbs)}")
    else:
        what = f"not {argv[0]!r}{nearest(argv[0], verbs)}" if argv else "none is given"
        raise UserError(f"one of {', '.join(verbs)} is needed, {what}")


def _usage() -> str:
    return (
        "usage: resim VERB ...\n\nRegion similarity pre-training of detection backbones on images without labels.\n\n"
        f"{_table(VERBS)}\n\n`resim VERB --help` explains its options; `resim --version` prints the version."
    )


def _table(verbs: dict[str, ModuleType]) -> str:
    width = max(map(len, verbs))
    return "\n".join(f"  {name:<{width}}  {_description(module)}" for name, module in verbs.items())


def _description(module: ModuleType) -> str:
    return (module.__doc__ or "").strip().partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
