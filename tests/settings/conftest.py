"""The environment and the configuration file of one test."""

import os
from pathlib import Path

import pytest

from .support import Configure


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Configure:
    """Sets environment variables and the TOML file's text, for this test only."""
    for name in list(os.environ):
        if name.startswith(("AISBREAKER_", "AUTH_", "DEFAULT_AISBREAKER_")):
            monkeypatch.delenv(name)

    def write(toml: str | bytes | None = None, **variables: str) -> None:
        if toml is not None:
            path = tmp_path / "aisbreaker.toml"
            path.write_bytes(toml.encode() if isinstance(toml, str) else toml)
            monkeypatch.setenv("AISBREAKER_CONFIG", str(path))
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return write
