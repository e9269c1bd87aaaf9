"""Base class of the server's protocols."""

import asyncio
import contextvars
import logging
from collections.abc import Callable, Coroutine
from typing import Any, cast
from urllib.parse import unquote

from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl, service_unavailable
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl
from uvicorn.server import ServerState

from ..asgi import OWN_EXTENSIONS
from .request_head import RequestHead

__all__ = ["BaseProtocol"]


class BaseProtocol(asyncio.Protocol):
    """
    A connection of uvicorn's server. Subclasses add `data_received`, `connection_lost` and `shutdown`.

    Args:
        config: the server's configuration.
        server_state: the state that all of the server's connections share.
        app_state: the state that the app's lifespan left.
        loop: the event loop; by default the current one.
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
        self._asgi_version = config.asgi_version
        self.server_state = server_state
        self.app_state = app_state
        self.loop = loop or asyncio.get_event_loop()
        self.logger = logging.getLogger("uvicorn.error")
        self.access_logger = logging.getLogger("uvicorn.access")
        self.access_log = self.access_logger.hasHandlers()
        self.transport: asyncio.Transport  # this and `flow` are set by connection_made()
        self.flow: FlowControl
        self.server: tuple[str, int | None] | None = None
        self.client: tuple[str, int] | None = None
        self.scheme = "http"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = stream = cast("asyncio.Transport", transport)  # uvloop's class is not asyncio's
        self.flow = FlowControl(stream)
        self.server = get_local_addr(stream)
        self.client = get_remote_addr(stream)
        self.scheme = "https" if is_ssl(stream) else "http"
        self.server_state.connections.add(cast(Any, self))  # uvicorn's set is typed by its own classes

    def make_scope(self, head: RequestHead) -> dict[str, Any]:
        """Return the ASGI scope of a request on this connection."""
        raw_path, _, query = head.target.partition(b"?")
        path = raw_path.decode("ascii")
        if "%" in path:
            path = unquote(path)
        root_path = self.config.root_path
        return {
            "type": "http",
            "asgi": {"version": self._asgi_version, "spec_version": "2.3"},
            "http_version": head.http_version,
            "method": head.method,
            "scheme": self.scheme,
            "path": root_path + path,
            "raw_path": root_path.encode("ascii") + raw_path,
            "query_string": query,
            "root_path": root_path,
            "headers": head.headers,
            "client": self.client,
            "server": self.server,
            "state": self.app_state.copy(),
            "extensions": OWN_EXTENSIONS,
        }

    def pause_writing(self) -> None:
        self.flow.pause_writing()

    def resume_writing(self) -> None:
        self.flow.resume_writing()

    def leave(self) -> None:
        """Remove this from the server's open connections."""
        self.server_state.connections.discard(cast(Any, self))

    def start(self, run: Callable[[ASGIApp], Coroutine[Any, Any, None]]) -> None:
        """Run the app for a request in a task of its own. An overloaded server runs an app that refuses the request."""
        app: Any = self.config.loaded_app
        tasks = self.server_state.tasks
        limit = self.config.limit_concurrency
        if limit is not None and limit <= max(len(self.server_state.connections), len(tasks)):
            app = service_unavailable
            self.logger.warning("Exceeded concurrency limit.")
        # None: a copy of the current context.
        context = contextvars.Context() if self.config.reset_contextvars else None
        task = self.loop.create_task(run(app), context=context)
        task.add_done_callback(tasks.discard)
        tasks.add(task)

    def hand_over(self, head: bytes) -> None:
        """Hand the connection over to the server's protocol for WebSockets, which reads the head again."""
        self.leave()
        protocol = cast(Any, self.config.ws_protocol_class)(
            config=self.config, server_state=self.server_state, app_state=self.app_state
        )
        protocol.connection_made(self.transport)
        protocol.data_received(head)
        self.transport.set_protocol(protocol)
