"""What a user did that cannot work, told in one line."""

from __future__ import annotations


class UserError(ValueError):
    """A wrong path, option, recipe or file: which one, what was expected, and the remedy, in one line.

    The `resim` command prints it without a stack trace and exits with code 2.
    """
