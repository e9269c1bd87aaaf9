"""The transports that every test here is run against."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import uvloop

from .support import STACKS, make_transport


@pytest.fixture(params=STACKS)
def stack(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def anyio_backend(stack: str) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": uvloop.new_event_loop if stack == "native-uvloop" else asyncio.new_event_loop}


@pytest.fixture
async def transport(stack: str) -> AsyncIterator[httpx.AsyncBaseTransport]:
    made = make_transport(stack)
    yield made
    await made.aclose()
    del made
