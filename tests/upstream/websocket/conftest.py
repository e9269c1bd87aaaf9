"""A server of ours for the WebSocket services of one file, and a service that echoes."""

from collections.abc import AsyncIterator, Iterator

import pytest

from .support import Service, gateway, service


@pytest.fixture(scope="module")
def front() -> Iterator[str]:
    """The base URL of a server of ours in front of the WebSocket services."""
    with gateway() as made:
        yield made


@pytest.fixture
async def echoing() -> AsyncIterator[Service]:
    async with service(select_subprotocol=lambda _, offered: "realtime" if "realtime" in offered else None) as made:
        yield made
