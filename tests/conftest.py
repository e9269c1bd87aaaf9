"""What every test stands on."""

import os

import pytest

for _name in [name for name in os.environ if name.startswith(("AISBREAKER_", "AUTH_"))] + ["DEFAULT_AISBREAKER_API_KEY"]:
    os.environ.pop(_name, None)  # the configuration of whoever runs the tests is not the tests'


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
