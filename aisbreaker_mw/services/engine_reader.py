"""Finds the models that a request names outside its path: in the query, or in the body."""

import asyncio

from ..client.body import RequestBody
from ..exceptions import InvalidRequest, PayloadTooLarge
from ..http1.fields import RawHeaders, get, get_all
from .engines import LARGE_BODY_BYTES, read_models, read_query_models, refuse_query_models
from .second_models import NamedModels

__all__ = ["EngineReader"]

_TOO_LARGE = "The token names models, and this body is too large to read its model from."


class EngineReader:
    """
    Reads the models that one request names, on demand.

    Args:
        source: where the engine stands (`RouteMatch.engine_source`).
        headers: headers of the request, names in lower case.
        query: raw query.
        body: body of the request; it is held in memory, and can still be streamed.
        limit: largest body that is read, in bytes, as it came and decompressed.
    """

    def __init__(self, source: str, headers: RawHeaders, query: bytes, body: RequestBody, limit: int) -> None:
        self._source = source
        self._headers = headers
        self._query = query
        self._body = body
        self._limit = limit
        self.used = False
        """Whether `read` was called."""

    async def read(self) -> NamedModels:
        """
        Return the models that the request names outside its path.

        Raises:
            InvalidRequest: they can't be read for certain.
            PayloadTooLarge: the body is over the limit.
            ClientDisconnected: the client went away.
        """
        self.used = True
        source = self._source
        if not source.startswith("query:"):
            # A gateway may take a model in the query instead of the body's.
            refuse_query_models(self._query)
            return NamedModels("") if self._body.exhausted else await self._read_body(source)
        named = read_query_models(source, self._query)
        if self._body.exhausted:
            return named
        further = await self._read_body("path")
        return NamedModels(named.engine, further.others, named.unchecked or further.unchecked)

    async def _read_body(self, source: str) -> NamedModels:
        headers, limit = self._headers, self._limit
        if any(len(get_all(headers, name)) > 1 for name in (b"content-type", b"content-encoding")):
            raise InvalidRequest("The request has more than one Content-Type or Content-Encoding header.")
        if int(get(headers, b"content-length") or 0) > limit:
            raise PayloadTooLarge(_TOO_LARGE)
        data = await self._body.collect(limit, lambda: PayloadTooLarge(_TOO_LARGE))
        content_type = (get(headers, b"content-type") or b"").decode("latin-1")
        content_encoding = (get(headers, b"content-encoding") or b"").decode("latin-1")
        if content_encoding or len(data) > LARGE_BODY_BYTES:
            # Parsing it would keep the event loop waiting.
            return await asyncio.to_thread(read_models, source, data, content_type, content_encoding, limit=limit)
        return read_models(source, data, content_type, content_encoding, limit=limit)
