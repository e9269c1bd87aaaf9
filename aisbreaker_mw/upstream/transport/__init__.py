"""HTTP/1.1 to an upstream, byte for byte, as an `httpx.AsyncBaseTransport`."""

from .request import TimeoutExtension
from .response import ResponseReader
from .slots import FAIR_SHARE, Asker
from .transport import HTTPTransport, origin_of

__all__ = ["FAIR_SHARE", "Asker", "HTTPTransport", "ResponseReader", "TimeoutExtension", "origin_of"]
