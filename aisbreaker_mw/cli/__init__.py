"""The command line, `aisbreaker`: its commands, the standalone server, and the demo."""

from .commands import main

__all__ = ["main"]
