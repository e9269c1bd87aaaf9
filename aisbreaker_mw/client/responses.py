"""Responses of this server itself: JSON, and errors in the form that the client's SDK parses."""

from typing import Any, Literal, TypeAlias

import orjson

from ..exceptions import RequestError
from ..http1.fields import RawHeaders

Dialect: TypeAlias = Literal["openai", "anthropic", "google"]
"""The family of SDKs that parse an error response."""

# https://platform.openai.com/docs/guides/error-codes
_OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    421: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
}
# https://docs.anthropic.com/en/api/errors
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "request_too_large",
    415: "invalid_request_error",
    421: "invalid_request_error",
    429: "rate_limit_error",
    431: "request_too_large",
    504: "timeout_error",
}
# https://cloud.google.com/apis/design/errors#handling_errors
_GOOGLE_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "INVALID_ARGUMENT",
    408: "DEADLINE_EXCEEDED",
    413: "INVALID_ARGUMENT",
    415: "INVALID_ARGUMENT",
    421: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    431: "INVALID_ARGUMENT",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    504: "DEADLINE_EXCEEDED",
    505: "UNIMPLEMENTED",
}

Response: TypeAlias = tuple[int, RawHeaders, bytes]
"""Status, headers and body of a whole response."""


def json_response(status: int, content: Any, headers: RawHeaders | None = None) -> Response:
    """Return a response with `content` as its JSON body."""
    body = orjson.dumps(content)
    return (
        status,
        [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            *(headers or ()),
        ],
        body,
    )


def error_response(error: RequestError, dialect: Dialect, request_id: str) -> Response:
    """
    Return the response for an error, in the dialect of one family of SDKs.

    Args:
        error: the error.
        dialect: `openai` (also for this server's own endpoints), `anthropic` or `google`.
        request_id: request identifier, sent as `request-id` to Anthropic's SDKs and as `x-request-id` to all others.
    """
    status = error.status
    id_header = b"x-request-id"
    content: dict[str, Any]
    match dialect:
        case "anthropic":
            id_header = b"request-id"
            kind = _ANTHROPIC_TYPES.get(status, "api_error")
            content = {
                "type": "error",
                "error": {"type": kind, "message": error.message},
                "request_id": request_id,
            }
        case "google":
            name = _GOOGLE_STATUSES.get(status, "UNAVAILABLE")
            content = {"error": {"code": status, "message": error.message, "status": name}}
        case "openai":
            kind = _OPENAI_TYPES.get(status, "server_error")
            content = {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}
    return json_response(status, content, [(id_header, request_id.encode("ascii")), *error.headers])
