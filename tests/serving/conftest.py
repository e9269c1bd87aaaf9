"""Connections on the test's own clock, and a server on each event loop."""

from collections.abc import Callable, Iterator

import pytest

from aisbreaker_mw.serving.request_head import Limits

from .support import LIMITS, App, Clock, Server, Wire, run_server


@pytest.fixture(scope="module")
def loop() -> Iterator[Clock]:
    loop = Clock()
    yield loop
    loop.close()


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def connect(loop: Clock, app: App) -> Iterator[Callable[..., Wire]]:
    wires: list[Wire] = []

    def connect(limits: Limits = LIMITS) -> Wire:
        wires.append(Wire(loop, app, limits))
        return wires[-1]

    yield connect
    for wire in wires:
        wire.abandon()


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def running_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with run_server(App(), loop=request.param) as server:
        yield server


@pytest.fixture
def server(running_server: Server) -> Server:
    """A real server, with nothing seen yet."""
    running_server.app.seen.clear()
    running_server.app.disconnects = 0
    return running_server
