"""HTTP/1.1 to an upstream, byte for byte, as an `httpx.AsyncBaseTransport`."""

from .answer import AnswerReader
from .pool import HTTPTransport, origin_of

__all__ = ["AnswerReader", "HTTPTransport", "origin_of"]
