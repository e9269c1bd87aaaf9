"""
The tree of errors.

    AIsBreakerError
    ├── ConfigurationError                 the start is refused
    ├── ResponseInterrupted                an answer that had begun was broken off
    ├── ClientDisconnected                 there is nobody to answer
    └── RequestError                       answered to the client, in the dialect of its SDK (500 internal_error)
        ├── CredentialUnsupported          500 credential_unsupported
        ├── InvalidRequest                 400 invalid_request
        ├── MissingCredential              401 missing_credential
        ├── InvalidToken                   401 invalid_token
        ├── InvalidClient                  401 invalid_client
        ├── ServiceNotAllowed              403 service_not_allowed
        ├── MintingRefused                 403 minting_refused
        ├── NotFound                       404 not_found
        ├── MethodNotAllowed               405 method_not_allowed
        ├── RequestTimeout                 408 request_timeout
        ├── PayloadTooLarge                413 payload_too_large
        ├── UnsupportedMediaType           415 unsupported_media_type
        ├── MisdirectedRequest             421 misdirected_request
        ├── RateLimitExceeded              429 rate_limit_exceeded
        ├── HeadTooLarge                   431 request_header_fields_too_large
        ├── UpstreamError                  502 upstream_error
        ├── UpstreamCredentialRejected     502 upstream_credential_rejected
        ├── QuotaStorageUnavailable        503 quota_storage_unavailable
        ├── UpstreamBusy                   503 upstream_busy
        ├── ShuttingDown                   503 server_shutting_down
        └── UpstreamTimeout                504 upstream_timeout

A message is a fixed text that may be shown to anybody: no exception text, no upstream host, no part of a token or secret.
"""

import math

from .http1.fields import RawHeaders

LONGEST_RETRY = 60.0
"""Seconds that a client's SDK should wait at most by itself; over that it is told not to retry."""


class AIsBreakerError(Exception):
    """The root of every error that this package raises."""


class ConfigurationError(AIsBreakerError):
    """The configuration is unusable. The message is one line: the key, and what it takes; never a secret's value."""


class ResponseInterrupted(AIsBreakerError):
    """
    An answer that had begun can't be completed, so the connection to the client must be closed without a proper end.

    Raised out of the ASGI app: that is how a server is told to cut a connection (the ASGI specification has no event for
    it), and how any middleware around us learns that the body is not whole.
    """


class ClientDisconnected(AIsBreakerError):
    """The client went away; there is nobody to answer."""


class RequestError(AIsBreakerError):
    """
    A request that is answered with an error.

    Args:
        message: a fixed text for the client; the class's own when not given.
        param: path of the field in the request that is to blame, where there is one.
    """

    status = 500
    code = "internal_error"
    message = "The request could not be processed."

    def __init__(self, message: str | None = None, *, param: str | None = None) -> None:
        super().__init__(message or self.message)
        self.message = message or self.message
        self.param = param

    @property
    def headers(self) -> RawHeaders:
        """Headers that belong to this error, names in lower case."""
        return []


class InvalidRequest(RequestError):
    status = 400
    code = "invalid_request"
    message = "The request is malformed."


class MissingCredential(RequestError):
    status = 401
    code = "missing_credential"
    message = "No API key was sent. Send an aisbreaker_... token where your SDK puts its API key."

    @property
    def headers(self) -> RawHeaders:
        # RFC 6750, 3.1: without any authentication information the challenge carries no error code.
        return [(b"www-authenticate", b"Bearer")]


class InvalidToken(RequestError):
    """A credential that does not open, or opened and has expired (RFC 6750, 3.1)."""

    status = 401
    code = "invalid_token"
    message = "The API key is not valid on this server."

    @property
    def headers(self) -> RawHeaders:
        description = self.message.encode("ascii")
        return [(b"www-authenticate", b'Bearer error="invalid_token", error_description="' + description + b'"')]


class InvalidClient(RequestError):
    """RFC 6749, 5.2: minting asks for a clientSecret, and this is not it."""

    status = 401
    code = "invalid_client"
    message = "This server issues tokens only to those who send its clientSecret."

    @property
    def headers(self) -> RawHeaders:
        return [(b"www-authenticate", b"Bearer")]


class ServiceNotAllowed(RequestError):
    status = 403
    code = "service_not_allowed"
    message = "The token holds no secret for the requested service."


class MintingRefused(RequestError):
    status = 403
    code = "minting_refused"
    message = "This server does not issue tokens."


class NotFound(RequestError):
    status = 404
    code = "not_found"
    message = "There is nothing at this path."


class MethodNotAllowed(RequestError):
    status = 405
    code = "method_not_allowed"
    message = "The method is not allowed here."

    def __init__(self, *allowed: str) -> None:
        super().__init__()
        self.allowed = allowed

    @property
    def headers(self) -> RawHeaders:
        return [(b"allow", ", ".join(self.allowed).encode("ascii"))]


class PayloadTooLarge(RequestError):
    status = 413
    code = "payload_too_large"
    message = "The request body is too large."


class UnsupportedMediaType(RequestError):
    status = 415
    code = "unsupported_media_type"
    message = "The request body must be application/json."


class HeadTooLarge(RequestError):
    """RFC 6585, 5: the head of the request has too many fields or bytes."""

    status = 431
    code = "request_header_fields_too_large"
    message = "The request's header fields are too many or too large."


class RequestTimeout(RequestError):
    """RFC 9110, 15.5.9: the server did not get the whole request in the time that it waits for one."""

    status = 408
    code = "request_timeout"
    message = "The request was sent too slowly."


class MisdirectedRequest(RequestError):
    """RFC 9110, 15.5.20: this server does not answer for the request's host."""

    status = 421
    code = "misdirected_request"
    message = "This server does not answer for the requested host."


class _Retryable(RequestError):
    """An error that passes with time. `retry_after`: seconds until a retry can succeed."""

    def __init__(self, message: str | None = None, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    @property
    def headers(self) -> RawHeaders:
        headers = [
            (b"retry-after", b"%d" % max(1, math.ceil(self.retry_after))),
            (b"retry-after-ms", b"%d" % max(1, math.ceil(self.retry_after * 1000))),
        ]
        if self.retry_after > LONGEST_RETRY:
            headers.append((b"x-should-retry", b"false"))
        return headers


class RateLimitExceeded(_Retryable):
    status = 429
    code = "rate_limit_exceeded"
    message = "The rate limit of this token or server is exceeded. Retry later."


class CredentialUnsupported(RequestError):
    """This server lacks the library that the service's kind of credential takes; the log says which."""

    status = 500
    code = "credential_unsupported"
    message = "This server is not equipped to authenticate with the AI service."

    @property
    def headers(self) -> RawHeaders:
        return [(b"x-should-retry", b"false")]


class UpstreamError(RequestError):
    status = 502
    code = "upstream_error"
    message = "The AI service could not be reached, or gave no valid answer."


class UpstreamCredentialRejected(RequestError):
    status = 502
    code = "upstream_credential_rejected"
    message = "The AI service rejected the credential that is sealed in the token."

    @property
    def headers(self) -> RawHeaders:
        return [(b"x-should-retry", b"false")]


class QuotaStorageUnavailable(_Retryable):
    status = 503
    code = "quota_storage_unavailable"
    message = "The quotas can't be checked at the moment. Retry later."


class UpstreamBusy(_Retryable):
    status = 503
    code = "upstream_busy"
    message = "All connections to the AI service are in use. Retry later."


class ShuttingDown(_Retryable):
    """The server drains; a request that had no answer yet can be sent again, elsewhere or later."""

    status = 503
    code = "server_shutting_down"
    message = "The server is shutting down. Retry."


class UpstreamTimeout(RequestError):
    status = 504
    code = "upstream_timeout"
    message = "The AI service did not answer in time."
