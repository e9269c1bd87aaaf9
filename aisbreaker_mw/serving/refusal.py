"""Error responses of the server itself, which no app sees."""

import logging

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from ..client.responses import error_response
from ..exceptions import RequestError, ServerBusy
from ..http1.fields import RawHeaders
from ..telemetry.logs import ACCESS_LOGGER, LogFields, new_request_id

_logger = logging.getLogger(ACCESS_LOGGER)


def write_refusal(
    error: RequestError, default_headers: RawHeaders, client: tuple[str, int] | None, *, bodyless: bool = False
) -> bytes:
    """
    Return a whole response that tells an error and announces the connection's end, and write its log line.

    `ServerBusy` has no line: its outage has one.

    The error has the shape of OpenAI's API. Neither it nor the log quotes anything that the client sent.

    Args:
        error: the error.
        default_headers: the server's own headers, such as Date.
        client: address and port of the client, where they are known.
        bodyless: whether the body is left out, as for HEAD.
    """
    request_id = new_request_id()
    status, headers, body = error_response(error, "openai", request_id)
    lines = [STATUS_LINE[status]]
    lines += [b"%b: %b\r\n" % header for header in (*default_headers, *headers, (b"connection", b"close"))]
    if not isinstance(error, ServerBusy):
        host = None if client is None else client[0]
        _logger.info(LogFields({"request_id": request_id, "client": host, "status": status, "error": error.code}))
    return b"".join((*lines, b"\r\n", b"" if bodyless else body))
