"""Errors that are reported in one line."""

from __future__ import annotations


class UserError(ValueError):
    """A wrong path, option, recipe or file; one line names it, its value and the remedy.

    The `resim` command prints it without a stack trace and exits with code 2.
    """


class WriteError(UserError):
    """A file cannot be written: the disk is full, or the folder is read-only."""


class StoppedError(RuntimeError):
    """A signal stopped a command that trains; one line says what is saved, and which command continues.

    The `resim` command prints it and exits with code 75.
    """


class LostProcessError(RuntimeError):
    """Another process of a run has ended, or cannot be reached; one line names it.

    The `resim` command prints it without a stack trace and exits with code 1.
    """
