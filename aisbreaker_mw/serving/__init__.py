"""The server: HTTP/1.1 and WebSockets as protocols of uvicorn, and the process that serves."""

from .http_protocol import HTTPProtocol
from .server import run
from .websocket_protocol import WebSocketProtocol

__all__ = ["HTTPProtocol", "WebSocketProtocol", "run"]
