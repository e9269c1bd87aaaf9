"""The command line: `aisbreaker`."""

from .commands import main

__all__ = ["main"]
