"""Errors of users, reported in one line."""

from __future__ import annotations


class UserError(ValueError):
    """A wrong path, option, recipe or file; one line names it, its value and the remedy.

    The `resim` command prints it without a stack trace and exits with code 2.
    """
