"""HTTP/1.1 to an upstream, byte for byte, as an `httpx.AsyncBaseTransport`."""

from .pool import HTTPTransport

__all__ = ["HTTPTransport"]
