"""Fuzzing: damaged and hostile inputs for every reader, each with a clear error or a correct result.

`python -m tests.fuzz --help` explains the options; `make fuzz MINUTES=10` runs all targets.
"""
