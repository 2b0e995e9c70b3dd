"""The `resim` command: a table of verbs.

Each verb is a module with a dataclass `Options` and a function `run(options)`, which returns an exit code or None for
0; where the defaults depend on a recipe or on a run to resume, it also has a function `defaults(argv)`. `WHEN_STOPPED`
says what remains of it after a signal, and how to go on.
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
from resim.errors import LostProcessError, StoppedError, UserError
from resim.exit_codes import CRASHED, FINISHED, INTERRUPTED, STOPPED, TABLE, USER_ERROR
from resim.signals import Terminated, end_on_signals

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
        The exit code, one of `resim.exit_codes`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return FINISHED if words else USER_ERROR
    verb, *rest = words
    if verb == "--version":
        from resim.version import __version__

        print(__version__)
        return FINISHED
    if verb not in VERBS:
        print(f"resim: no verb {verb!r}: one of {', '.join(VERBS)}{nearest(verb, VERBS)}", file=sys.stderr)
        return USER_ERROR
    try:
        with end_on_signals():
            return _run(VERBS[verb], verb, rest)
    except UserError as error:
        print(f"resim {verb}: {_one_line(str(error))}", file=sys.stderr)
        return USER_ERROR
    except LostProcessError as error:
        remedy = "resume with the same command and --resume auto"
        print(f"resim {verb}: {_one_line(str(error))}; {remedy}", file=sys.stderr)
        return CRASHED
    except BrokenPipeError:
        return FINISHED
    except StoppedError as error:
        print(f"resim {verb}: {_one_line(str(error))}", file=sys.stderr)
        return STOPPED
    except KeyboardInterrupt as end:
        event = f"stopped by {end.signal_name}" if isinstance(end, Terminated) else "interrupted"
        print(f"resim {verb}: {event}: {_what_remains(VERBS[verb], rest)}", file=sys.stderr)
        return STOPPED if isinstance(end, Terminated) else INTERRUPTED
    except OSError as error:  # a full disk, a folder that went away
        where = f"{error.filename}: " if error.filename else ""
        print(f"resim {verb}: {where}{error.strerror or error}", file=sys.stderr)
        return USER_ERROR


def _one_line(message: str) -> str:
    """A message in one line of at most 2,000 characters: a name in a file can have a million."""
    line = " ".join(message.splitlines())
    line = line if len(line) <= 2000 else f"{line[:1500]} ... {line[-450:]}"
    return line.encode("utf-8", "backslashreplace").decode()


def _what_remains(module: ModuleType, argv: Sequence[str]) -> str:
    """What a verb says of itself after a signal."""
    verbs = getattr(module, "VERBS", {})
    verb = verbs.get(argv[0], module) if argv else module
    return getattr(verb, "WHEN_STOPPED", "the same command starts from the beginning")


def _run(module: ModuleType, verb: str, argv: Sequence[str]) -> int:
    if hasattr(module, "VERBS"):
        return _run_group(module.VERBS, verb, argv)
    default = module.defaults(argv) if hasattr(module, "defaults") else None
    code = module.run(read_options(module.Options, argv, verb, _description(module), default))
    return FINISHED if code is None else code


def _run_group(verbs: dict[str, ModuleType], group: str, argv: Sequence[str]) -> int:
    if argv and argv[0] in verbs:
        return _run(verbs[argv[0]], f"{group} {argv[0]}", argv[1:])
    if argv and argv[0] in ("-h", "--help"):
        print(f"usage: resim {group} {'|'.join(verbs)} ...\n\n{_table(verbs)}")
        return FINISHED
    what = f"not {argv[0]!r}{nearest(argv[0], verbs)}" if argv else "none is given"
    raise UserError(f"one of {', '.join(verbs)} is needed, {what}")


def _usage() -> str:
    return (
        "usage: resim VERB ...\n\nRegion similarity pre-training of detection backbones on images without labels.\n\n"
        f"{_table(VERBS)}\n\n`resim VERB --help` explains its options; `resim --version` prints the version.\n\n"
        "exit codes:\n" + "\n".join(f"  {code:<3}  {meaning}" for code, meaning in TABLE.items())
    )


def _table(verbs: dict[str, ModuleType]) -> str:
    width = max(map(len, verbs))
    return "\n".join(f"  {name:<{width}}  {_description(module)}" for name, module in verbs.items())


def _description(module: ModuleType) -> str:
    return (module.__doc__ or "").strip().partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
