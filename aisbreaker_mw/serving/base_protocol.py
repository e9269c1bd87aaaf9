"""A connection of uvicorn's server, whatever is spoken on it."""

import asyncio
import contextvars
import logging
from collections.abc import Callable, Coroutine
from typing import Any, cast

from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl, service_unavailable
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl
from uvicorn.server import ServerState

__all__ = ["BaseProtocol"]


class BaseProtocol(asyncio.Protocol):
    """
    What uvicorn's server asks of a protocol, but for `data_received`, `connection_lost` and `shutdown`.

    Args:
        config: the server's.
        server_state: what all its connections share.
        app_state: what the app's lifespan left.
        loop: on which it runs; the running one when not given.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if not config.loaded:
            config.load()
        self.config = config
        self.server_state = server_state
        self.app_state = app_state
        self.loop = loop or asyncio.get_event_loop()
        self.logger = logging.getLogger("uvicorn.error")
        self.access_logger = logging.getLogger("uvicorn.access")
        self.access_log = self.access_logger.hasHandlers()
        self.transport: asyncio.Transport  # these are there from connection_made() on
        self.flow: FlowControl
        self.server: tuple[str, int | None] | None = None
        self.client: tuple[str, int] | None = None
        self.scheme = "http"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = stream = cast("asyncio.Transport", transport)  # uvloop's are none of asyncio's classes
        self.flow = FlowControl(stream)
        self.server = get_local_addr(stream)
        self.client = get_remote_addr(stream)
        self.scheme = "https" if is_ssl(stream) else "http"
        self.server_state.connections.add(cast(Any, self))  # uvicorn names its own classes

    def pause_writing(self) -> None:
        self.flow.pause_writing()

    def resume_writing(self) -> None:
        self.flow.resume_writing()

    def leave(self) -> None:
        """Be none of the server's connections any more."""
        self.server_state.connections.discard(cast(Any, self))

    def start(self, run: Callable[[ASGIApp], Coroutine[Any, Any, None]]) -> None:
        """Run the app for a request, in a task of its own; where the server has enough to do, one that refuses it."""
        app: Any = self.config.loaded_app
        tasks = self.server_state.tasks
        limit = self.config.limit_concurrency
        if limit is not None and limit <= max(len(self.server_state.connections), len(tasks)):
            app = service_unavailable
            self.logger.warning("Exceeded concurrency limit.")
        # None: a copy of the context that this runs in.
        context = contextvars.Context() if self.config.reset_contextvars else None
        task = self.loop.create_task(run(app), context=context)
        task.add_done_callback(tasks.discard)
        tasks.add(task)

    def hand_over(self, head: bytes) -> None:
        """Leave the connection to the server's protocol for WebSockets, which reads the head anew."""
        self.leave()
        protocol = cast(Any, self.config.ws_protocol_class)(
            config=self.config, server_state=self.server_state, app_state=self.app_state
        )
        protocol.connection_made(self.transport)
        protocol.data_received(head)
        self.transport.set_protocol(protocol)
