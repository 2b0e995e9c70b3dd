"""The version, which stands here alone: the distribution takes it from this file."""

__version__ = "0.1.0"
