"""HTTP/1.1 to an upstream, byte for byte, as an `httpx.AsyncBaseTransport`."""

from .pool import HTTPTransport, origin_of

__all__ = ["HTTPTransport", "origin_of"]
