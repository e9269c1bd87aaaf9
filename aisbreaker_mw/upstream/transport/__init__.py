"""HTTP/1.1 to an upstream, byte for byte, as an `httpx.AsyncBaseTransport`."""

from .pool import HTTPTransport, origin_of
from .response import ResponseReader

__all__ = ["HTTPTransport", "ResponseReader", "origin_of"]
