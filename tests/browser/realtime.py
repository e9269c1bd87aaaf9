"""A realtime service in threads, for clients in other processes: answers events with events, and keeps the handshakes."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve
from websockets.typing import Subprotocol


class Realtime:
    """What a WebSocket service has seen."""

    def __init__(self) -> None:
        self.url = ""
        self.paths: list[str] = []
        self.headers: list[list[tuple[str, str]]] = []
        self.messages: list[str | bytes] = []
        self.closings: list[tuple[int | None, str | None]] = []

    def handle(self, socket: ServerConnection) -> None:
        assert socket.request
        self.paths.append(socket.request.path)
        self.headers.append([(name.lower(), value) for name, value in socket.request.headers.raw_items()])
        with suppress(ConnectionClosed):
            for message in socket:
                self.messages.append(message)
                socket.send(json.dumps({"type": "response.output_text.done", "text": "Grüße"}))
        self.closings.append((socket.close_code, socket.close_reason))

    def check_sealed(self, secret: str) -> None:
        """Check that every handshake carried the sealed key once, as a header, and no trace of a server of ours."""
        for path, headers in zip(self.paths, self.headers, strict=True):
            assert [value for name, value in headers if name == "authorization"] == [f"Bearer {secret}"]
            head = f"{path}\n{headers}"
            assert head.count(secret) == 1
            assert "aisbreaker" not in head.lower()
            assert "api-key" not in head


def _select(_: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    return next((name for name in offered if name == "realtime"), None)


@contextmanager
def realtime() -> Iterator[Realtime]:
    """Run such a service."""
    service = Realtime()
    with serve(service.handle, "127.0.0.1", 0, select_subprotocol=_select) as server:
        service.url = f"http://127.0.0.1:{server.socket.getsockname()[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield service
    thread.join()
