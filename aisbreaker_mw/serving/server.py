"""
Runs an ASGI app on uvicorn, with our protocols, one line when it listens, and a drain at the end.

SIGTERM or SIGINT begins the drain. No connection is accepted any more, idle ones are closed, and responses in flight may
finish. After `grace` seconds the rest is cut, and clients can see that. Then the app's lifespan ends. A second signal cuts at
once.
"""

import asyncio
import contextlib
import errno
import logging
import os
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, cast

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from ..exceptions import ConfigurationError
from ..telemetry.writer import QueuedHandler
from .http_protocol import HTTPProtocol
from .open_files import OPEN_FILES, raise_limit
from .supervisor import Supervisor
from .websocket_protocol import WebSocketProtocol

__all__ = ["run"]

_logger = logging.getLogger("aisbreaker_mw.server")

_BACKLOG = 2048
_KEEP_ALIVE = 75  # seconds; longer than AI SDKs keep an idle connection, so that the client closes it, not the server

_LOG_CONFIG: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "handlers": {"stderr": {"()": QueuedHandler, "formatter": "line"}},
    "root": {"level": "WARNING", "handlers": ["stderr"]},
    "loggers": {"aisbreaker_mw": {"level": "INFO"}, "uvicorn.error": {"level": "WARNING"}},
}


def run(
    app: str | Callable[[], Any],
    *,
    host: str,
    port: int,
    workers: int = 1,
    grace: float = 30.0,
    log_config: dict[str, Any] | None = None,
    http: Callable[..., HTTPProtocol] = HTTPProtocol,
) -> int:
    """
    Serve an app until a signal ends it.

    Args:
        app: factory of the ASGI app, or its import string (`aisbreaker_mw:create_app`).
        host: address or name to listen on. A name with several addresses is served on each.
        port: TCP port, or 0 for a free one. The line `aisbreaker is listening on http://HOST:PORT` tells which.
        workers: number of processes. Above 1 the app must be an import string, as every worker makes its own.
        grace: seconds for responses in flight after the first signal.
        log_config: a `logging.config.dictConfig`; by default lines on stderr. It must be picklable, as workers apply it too.
        http: factory of a connection's protocol. `functools.partial(HTTPProtocol, limits=...)` sets other limits.

    Returns:
        The process's exit status: 0 after a drain, 1 when the start failed or a second signal cut the drain short.

    Raises:
        ValueError: there are several workers, and the app is no import string.
    """
    if workers > 1 and not isinstance(app, str):
        raise ValueError("several workers need the app as an import string")
    config = _Config(
        app,
        factory=True,
        host=host,
        port=port,
        workers=workers,
        loop="auto",
        http=cast(Any, http),  # uvicorn is typed for a class, but only calls it
        ws=WebSocketProtocol,
        ws_per_message_deflate=False,  # not offered to the services either, see upstream/websocket.py
        lifespan="on",
        log_config=_LOG_CONFIG if log_config is None else log_config,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=True,  # HTTPProtocol adds it only where the app's response has none
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=grace,  # type: ignore[arg-type]  # asyncio.wait_for takes any number
    )
    raise_limit()  # workers inherit it
    try:
        sockets = _listen(host, port)
    except OSError as error:
        _logger.error("can't listen on %s: %s", _authority(host, port), _reason(error))
        return 1
    url = f"http://{_authority(host, sockets[0].getsockname()[1])}"
    try:
        if workers > 1:
            return Supervisor(config, sockets, grace, lambda: _say_listening(url)).run()
        server = _Server(config, url)
        server.run(sockets)
        return int(server.force_exit)
    except SystemExit:
        return 1  # uvicorn raises it when the start failed, and has logged why
    finally:
        for each in sockets:
            each.close()


class _Config(uvicorn.Config):
    """Reports an unusable configuration in one line, and ends the process with a status of its own."""

    def load(self) -> None:
        try:
            super().load()
        except ConfigurationError as error:
            _logger.error("%s", error)
            sys.exit(STARTUP_FAILURE)


class _Server(uvicorn.Server):
    """The server in one process. It ends with a status; uvicorn's own would die of the signal that stopped it."""

    def __init__(self, config: uvicorn.Config, url: str) -> None:
        super().__init__(config)
        self._url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(OPEN_FILES.handle)
        await super().startup(sockets=sockets)
        if self.started:
            _say_listening(self._url)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


def _say_listening(url: str) -> None:
    _logger.info("aisbreaker is listening on %s", url)


def _listen(host: str, port: int) -> list[socket.socket]:
    """
    Return a listening socket for each of the host's addresses that this machine has, all on one port.

    They listen before the app is up. With SO_REUSEADDR another process could still take a port that is only bound, and uvloop
    does not report that it fails to listen.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    with contextlib.ExitStack() as undo:
        for family, address in addresses:
            one = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
            if os.name == "posix":
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6 and len(addresses) > 1:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                one.bind((address[0], port, *address[2:]))
                one.listen(_BACKLOG)
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                one.close()
                missing = error
                continue
            one.set_inheritable(True)
            sockets.append(one)
            port = port or one.getsockname()[1]
        if missing is not None and not sockets:
            raise missing
        undo.pop_all()
    return sockets


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _reason(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "the name has no address"
    return os.strerror(error.errno).lower() if error.errno else "not possible"
