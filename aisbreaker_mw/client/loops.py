"""Recognises a request that has been here before: `network` may lead back to this server."""

from secrets import token_hex

from starlette.types import Scope

from ..exceptions import LoopDetected
from ..http1.fields import get_all

__all__ = ["PASSED_HEADER", "LoopGuard"]

PASSED_HEADER = b"x-aisbreaker-passed"
"""Header that tells the servers a request has passed, one id a field. It is sent to other AIsBreaker servers alone."""
MAX_SERVERS = 16
"""Servers that a request may pass."""


class LoopGuard:
    """Marks requests to other AIsBreaker servers with a random id of this process, and refuses those that come back."""

    def __init__(self) -> None:
        self._id = token_hex(8).encode("ascii")

    @property
    def header(self) -> tuple[bytes, bytes]:
        """The header to add to a request."""
        return PASSED_HEADER, self._id

    def check(self, scope: Scope) -> None:
        """
        Refuse a request that has passed this process, or too many servers.

        Args:
            scope: ASGI scope of the request.

        Raises:
            LoopDetected
        """
        passed = get_all(scope["headers"], PASSED_HEADER)
        if self._id in passed or len(passed) >= MAX_SERVERS:
            raise LoopDetected
